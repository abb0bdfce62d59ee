"""The user's own NumPy archive: arrays `x` and `y`, and any number of text or integer columns beside them."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records, StrArray
from client.datasets.sources import data_path, did_you_mean, listed, partition_column
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan

Array = npt.NDArray[Any]


def load(data: DataPlan, card: DataCard, *, leave_out: bool = False) -> Parts:
    """All records of `data.path`; there is no test part.

    `x` is (n, *input_shape), uint8 (scaled to [0, 1]) or floating; then `(value - mean) / std`. `y` is (n,),
    integers from 0. Any other array of n texts or integers may name people (`data.person_column`) or natural
    clients. With `leave_out`, a record that the card doesn't describe is left out, each by itself: no error.

    Raises:
        UsageError: the file or one of its arrays is not like that. The text counts what is wrong, it shows no
        value.
    """
    path = data_path(data)
    group, person = partition_column(data), data.person_column
    asked = {"x": "x", "y": "y", "data.partition.column": group, "data.person_column": person}
    arrays = _arrays(path, {key: name for key, name in asked.items() if name is not None})
    x, y = arrays["x"], arrays["y"]
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise UsageError(f"{path}: x is {x.dtype}; save it as uint8 (0 to 255) or floating")
    if x.shape[1:] != card.input_shape or x.ndim == 0:
        raise UsageError(
            f"{path}: x has shape {x.shape}, data.card.input_shape = {list(card.input_shape)} asks for "
            f"(n, {', '.join(map(str, card.input_shape))})"
        )
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise UsageError(f"{path}: y is {y.dtype} of shape {y.shape}; it must be {len(x)} integers, one for each x")
    if leave_out:
        fits = (y >= 0) & (y < len(card.classes)) & np.isfinite(x).all(axis=tuple(range(1, x.ndim)))
        if person is not None:
            fits &= _text(path, person, arrays[person], len(x)) != ""
        arrays = {name: array[fits] if len(array) == len(y) else array for name, array in arrays.items()}
        x, y = arrays["x"], arrays["y"]
    wrong = int(((y < 0) | (y >= len(card.classes))).sum())
    if wrong:
        raise UsageError(
            f"{path}: {wrong} of {len(y)} labels are not in 0 to {len(card.classes) - 1} (data.card.classes)"
        )
    values = normalise(x, card)
    unfinite = int((~torch.isfinite(values)).sum())
    if unfinite:
        raise UsageError(f"{path}: {unfinite} of {x.size} values of x are NaN or infinite; mend or remove them")
    texts = {name: _text(path, name, arrays[name], len(x)) for name in (group, person) if name is not None}
    if person is not None and (nameless := int((texts[person] == "").sum())):
        raise UsageError(f"{path}: {nameless} of {len(x)} records name no person in {person!r}; fill in or remove them")
    records = Records(
        x=values,
        y=torch.from_numpy(y.astype(np.int64)),
        groups={} if group is None else {group: texts[group]},
        people=None if person is None else texts[person],
    )
    return records, None


def _arrays(path: Path, asked: dict[str, str]) -> dict[str, Array]:
    """The arrays asked for, by name; only these are read."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{path}: is a single array; save x and y together with numpy.savez(PATH, x=..., y=...)")
        with archive:
            for key, name in asked.items():
                if name not in archive.files:
                    raise UsageError(
                        f"{key}: {path} has no array {name!r}{did_you_mean(name, archive.files)}; "
                        f"arrays there: {listed(archive.files)}"
                    )
            return {name: archive[name] for name in asked.values()}
    # NumPy says ValueError for what is no archive and for arrays of Python objects, which would run code if
    # read.
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(
            f"{path}: is not an .npz archive of plain arrays, or is damaged; save it anew with numpy.savez"
        ) from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error


def _text(path: Path, name: str, values: Array, records: int) -> StrArray:
    if values.dtype.kind not in "Uiu" or values.shape != (records,):
        raise UsageError(
            f"{path}: {name!r} is {values.dtype} of shape {values.shape}; it must be {records} texts or integers"
        )
    return np.char.strip(values.astype(np.str_))
