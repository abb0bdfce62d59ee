"""The data sets by name, and how one is loaded: read, bounded by person, split into train and test.

A new set is one file with a `load(data, card)` and one line in `_LOADERS`; `shared_models.cards` holds its
card.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from client.datasets import (
    adult,
    digits,
    fashion_mnist,
    heart_disease,
    image_folder,
    mnist,
    npz,
    own_tables,
    sentences,
    sentiment,
    shakespeare,
    watch,
)
from client.datasets.records import Parts, Records, count_rows
from client.datasets.sources import did_you_mean, listed
from client.datasets.split import bound_rows_per_person, split
from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.plan_data import TABLES, DataPlan, IidPartition

# Loaders import what they read with (pandas, scikit-learn, Pillow, ...) when they are called: a client that
# only has a CSV file needs neither the others' libraries nor their start-up time.
_LOADERS: Final[Mapping[str, Callable[..., Parts]]] = {
    **dict.fromkeys(TABLES, own_tables.load),
    "adult": adult.load,
    "digits": digits.load,
    "fashion-mnist": fashion_mnist.load,
    "heart-disease": heart_disease.load,
    "image-folder": image_folder.load,
    "mnist": mnist.load,
    "npz": npz.load,
    "sentences": sentences.load,
    "sentiment": sentiment.load,
    "shakespeare": shakespeare.load,
    "watch": watch.load,
}

# Loaders that can keep columns of a table beside its records.
_KEEPING: Final = frozenset({*TABLES, "adult", "heart-disease"})

# Files of one's own.
_OWN: Final[Mapping[str, Callable[..., Parts]]] = {
    **dict.fromkeys(TABLES, own_tables.load),
    "npz": npz.load,
    "image-folder": image_folder.load,
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A data set, ready for training and evaluation.

    Unless the set has a test part of its own, the two share no record, and no person where they are named.
    """

    train: Records
    test: Records
    card: DataCard


def names() -> tuple[str, ...]:
    """The names `data.name` may have, sorted."""
    return tuple(sorted(_LOADERS))


def load(data: DataPlan, *, split_key: bytes, whole: bool = False, columns: Sequence[str] = ()) -> Loaded:
    """The data a plan names.

    Args:
        data: the plan's [data]. With `person_column`, at most `max_rows_per_person` records of each person
            are kept (rule 6) and a person's records are on one side of the split.
        split_key: the owner's secret for the hashes of rules 6 and 10; the same key gives the same records.
        whole: whether a set without a test part of its own stays in one piece, all of it `train`: each client then
            holds out a part of what it gets. So does one of which the plan holds nothing out.
        columns: of a table, more columns to keep in the records' `groups`, for who judges a model.

    Raises:
        UsageError: the set is not known, not described or not there, or its content is not as described.
    """
    if not split_key:
        raise ValueError("split_key is empty: the split would not be secret (rule 10)")
    loader = _LOADERS.get(data.name)
    if loader is None:
        raise UsageError(
            f"data.name: {data.name!r} is not known{did_you_mean(data.name, names())}; known: {', '.join(names())}"
        )
    card = card_for(data)
    train, test = loader(data, card, **_kept(data.name, columns))
    for part in (train,) if test is None else (train, test):
        _check(part, card)
    for column in columns:
        if column not in train.groups:
            raise UsageError(
                f"--by: data.name = '{data.name}' has no column {column!r} beside its records; there: "
                f"{listed(train.groups)}"
            )
    train = _bounded(train, data, key=split_key)
    if test is None:
        undivided = whole or data.test_fraction == 0
        parts = (train, train.take([])) if undivided else split(train, key=split_key, test_fraction=data.test_fraction)
        train, test = parts
    return Loaded(train=train, test=test, card=card)


def load_file(
    data: DataPlan,
    *,
    kind: str,
    path: Path,
    split_key: bytes,
    leave_out: bool = False,
    columns: Sequence[str] = (),
) -> Records:
    """All records of a file of one's own, read by the card of the plan: what a deployed site or server has.

    There is no partition, and no test part.

    Args:
        data: the plan's [data]; where it says that the data lies is another machine's business.
        kind: what the file is: one of `TABLES`, npz or image-folder.
        path: of the file or folder.
        split_key: as for `load`.
        leave_out: whether a record that the card doesn't describe is left out, each by itself, in place of an error.
            The card is the plan's: an error would tell whoever wrote the plan about single records (rule 5).
        columns: as for `load`.

    Raises:
        UsageError: there is nothing, or its content is not as the card describes it. The text counts what is wrong,
            it shows no value.
    """
    if not split_key:
        raise ValueError("split_key is empty: who stays under a person's bound would not be secret (rule 6)")
    if not path.expanduser().exists():
        raise UsageError(
            f"{path}: the data for data.name = '{data.name}' does not exist; put it there, or mend the path"
        )
    card = card_for(data)
    refusal = misfit(data, kind)
    if refusal is not None:
        raise UsageError(f"{path}: {refusal}")
    own = data.model_copy(update={"name": kind, "path": str(path), "partition": IidPartition()})
    if columns and kind not in _KEEPING:
        raise UsageError(f"--by: a file of format {kind} has no columns beside its records")
    records, _ = _OWN[kind](own, card, leave_out=leave_out, **_kept(kind, columns))
    if leave_out and card.vocabulary is not None:
        records = records.take(np.flatnonzero(_are_tokens(records, card)))
    _check(records, card)
    return _bounded(records, data, key=split_key)


def _kept(name: str, columns: Sequence[str]) -> dict[str, Sequence[str]]:
    """What a loader of tables is told beside the plan's [data]."""
    return {"columns": columns} if columns and name in _KEEPING else {}


def misfit(data: DataPlan, kind: str) -> str | None:
    """Why a file of that kind can't hold the data a plan asks for; None if it may. Public facts alone decide.

    Raises:
        UsageError: as `card_for`.
    """
    card = card_for(data)
    if card.at_each_place:
        return f"'{data.name}' has a label at each place, which no file of one's own can hold"
    if kind in TABLES and card.target is None:
        return f"'{data.name}' is no table: a {kind} file can't hold it; save it as npz"
    if kind == "image-folder" and (len(card.input_shape) != 3 or card.input_shape[0] not in (1, 3)):
        return f"'{data.name}' has no images: an image-folder can't hold it; save it as csv or npz"
    if kind == "image-folder" and data.person_column is not None:
        return f"the plan bounds each person's records, but a folder of images names nobody; save {data.name} as npz"
    return None


def _are_tokens(records: Records, card: DataCard) -> npt.NDArray[np.bool_]:
    """Which records hold numbers of tokens alone: others would end training in the midst of it (rule 5)."""
    x = records.x.numpy()
    found: npt.NDArray[np.bool_] = ((x >= 0) & (x < (card.vocabulary or 0)) & (x == np.rint(x))).all(axis=1)
    return found


def _bounded(records: Records, data: DataPlan, *, key: bytes) -> Records:
    """At most so many records of each person as the plan says (rule 6)."""
    if data.max_rows_per_person is None:
        return records
    if records.people is None:
        raise UsageError(
            f"data.person_column: data.name = '{data.name}' has no column {data.person_column!r}; remove "
            f"data.person_column and data.max_rows_per_person"
        )
    return bound_rows_per_person(records, key=key, most=data.max_rows_per_person)


def _check(records: Records, card: DataCard) -> None:
    """What a model will rely on: the shape and classes both sides agreed on."""
    if records.x.shape[1:] != card.input_shape:
        raise UsageError(
            f"{card.name}: records have shape {tuple(records.x.shape[1:])}, its card says {card.input_shape}"
        )
    strange = 0 if card.vocabulary is None else int((~_are_tokens(records, card)).sum())
    if strange:
        raise UsageError(f"{card.name}: {strange} of {len(records)} records hold numbers that are no tokens")
    places = card.input_shape if card.at_each_place else ()
    if records.y.shape[1:] != places:
        raise UsageError(f"{card.name}: labels have shape {tuple(records.y.shape[1:])}, its card says {places}")
    wrong = count_rows(records.y >= len(card.classes))
    if wrong:
        raise UsageError(f"{card.name}: {wrong} of {len(records)} labels are above {len(card.classes) - 1}")
