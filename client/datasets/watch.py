"""Shoulder exercises by a smartwatch: 10 people, 7 exercises, accelerometer and gyroscope at 50 Hz (Burns et al. 2018,
"Shoulder physiotherapy exercise recognition", arXiv 1802.01489), as seglearn ships them.

A recording is cut into windows of 128 times, each half over the one before: a measured moment is in two records, and a
person in some 360. People 9 and 10 are the test part. The unit of a record's privacy is the window; for a person's,
`data.person_column = "person"` bounds the windows that each gives.
"""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.records import Parts, Records
from client.datasets.sources import did_you_mean, partition_column, refuse_path
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.plan_data import DataPlan

WINDOW: Final = 128
_STEP: Final = 64
_TEST: Final = (9, 10)  # people
_COLUMNS: Final = ("person",)
_ALLOWED: Final = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


def load(data: DataPlan, card: DataCard) -> Parts:
    """Windows x (n, 6, 128) of people 1 to 8, and of 9 and 10 as the test part; each person may be a client.

    Three accelerations in g, and three angular velocities in radians per second, as they were measured.

    Raises:
        UsageError: it isn't fetched yet, or damaged; or the plan names a column that isn't there.
    """
    refuse_path(data)
    for key, column in (
        ("data.partition.column", partition_column(data)),
        ("data.person_column", data.person_column),
    ):
        if column is not None and column not in _COLUMNS:
            raise UsageError(f"{key}: watch has no column {column!r}{did_you_mean(column, _COLUMNS)}; there: 'person'")
    del card
    x, y, people = _windows(fetched("watch")["watch_dataset.npy"])
    is_test = np.isin(people, _TEST)
    train, test = (_records(x[rows], y[rows], people[rows], data) for rows in (~is_test, is_test))
    return train, test


def _records(
    x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], people: npt.NDArray[np.int64], data: DataPlan
) -> Records:
    names = np.array([f"{person:02}" for person in people], dtype=np.str_)
    return Records(
        x=torch.from_numpy(x),
        y=torch.from_numpy(y),
        groups={"person": names},
        people=None if data.person_column is None else names,
    )


@cache
def _windows(path: Path) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Windows (n, 6, 128), their exercises and their people (n,)."""
    recordings = _read(path)
    x, y, people = [], [], []
    for signal, exercise, person in zip(recordings["X"], recordings["y"], recordings["subject"], strict=True):
        values = np.asarray(signal, dtype=np.float32).T
        found = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis=1)[:, ::_STEP].transpose(1, 0, 2)
        x.append(found)
        y += [int(exercise)] * len(found)
        people += [int(person)] * len(found)
    return np.concatenate(x), np.array(y, dtype=np.int64), np.array(people, dtype=np.int64)


class _Arrays(pickle.Unpickler):
    """NumPy pickles lists of arrays; nothing else is made of what the file says."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
        found: dict[str, Any] = _Arrays(file).load().item()
    return found
