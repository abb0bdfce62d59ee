"""A user's own NumPy archive: shape, numbers and columns are checked before a record is used."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.datasets.partition import client_records
from client.datasets.registry import load
from security.errors import UsageError
from shared_models.plan_data import DataPlan

KEY = b"k" * 32
N = 40


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (N, 1, 2, 2), dtype=np.uint8),
        "y": np.arange(N) % 3,
        "person": np.array([f"p{n // 4}" for n in range(N)]),
        "device": np.arange(N) % 2,
    } | changes


def plan(folder: Path, **changes: Any) -> DataPlan:
    card = {"classes": ["a", "b", "c"], "input_shape": [1, 2, 2], "mean": 0.5, "std": 0.5}
    return DataPlan.model_validate({"name": "npz", "path": str(folder / "d.npz"), "card": card} | changes)


def saved(folder: Path, **changes: Any) -> Path:
    np.savez(folder / "d.npz", **arrays(**changes))
    return folder


def test_bytes_are_pixels_scaled_and_normalised(tmp_path: Path) -> None:
    loaded = load(plan(saved(tmp_path)), split_key=KEY)
    assert len(loaded.train) + len(loaded.test) == N
    assert float(loaded.train.x.min()) >= -1
    assert float(loaded.train.x.max()) <= 1
    assert float(loaded.train.x.std()) > 0.3


def test_floats_are_only_normalised(tmp_path: Path) -> None:
    loaded = load(plan(saved(tmp_path, x=np.full((N, 1, 2, 2), 3.0))), split_key=KEY)
    assert (loaded.train.x if len(loaded.train) else loaded.test.x).unique().tolist() == [5.0]


def test_columns_name_people_and_clients(tmp_path: Path) -> None:
    by_device = plan(
        saved(tmp_path),
        person_column="person",
        max_rows_per_person=2,
        partition={"kind": "natural", "column": "device"},
    )
    loaded = load(by_device, split_key=KEY)
    assert loaded.train.people is not None
    assert {loaded.train.people.tolist().count(who) for who in set(loaded.train.people)} == {2}
    assert list(client_records(by_device, seed=0, split_key=KEY)) == ["0", "1"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x": np.zeros((N, 2, 2))}, r"x has shape \(40, 2, 2\), .*\(n, 1, 2, 2\)"),
        ({"x": np.zeros((N, 1, 2, 2), dtype=np.int64)}, "x is int64; save it as uint8"),
        ({"x": np.full((N, 1, 2, 2), np.nan)}, "160 of 160 values of x are NaN or infinite"),
        ({"x": np.full((N, 1, 2, 2), 1e300)}, "160 of 160 values of x are NaN or infinite"),
        ({"y": np.arange(N) % 4}, "10 of 40 labels are not in 0 to 2"),
        ({"y": -np.ones(N, dtype=np.int64)}, "40 of 40 labels are not in 0 to 2"),
        ({"y": np.zeros(N)}, "y is float64"),
        ({"y": np.zeros(N - 1, dtype=np.int64)}, r"shape \(39,\); it must be 40 integers"),
        ({"x": np.array([object()] * N, dtype=object)}, "not an .npz archive of plain arrays"),
        ({"person": np.zeros(N)}, "'person' is float64"),
        ({"person": np.array(["p"] * (N - 1))}, r"'person' is <U1 of shape \(39,\)"),
        ({"person": np.array(["p", " "] * (N // 2))}, "20 of 40 records name no person"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_arrays_that_do_not_fit_the_card_are_refused_by_count(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    people = {"person_column": "person", "max_rows_per_person": 2}
    with pytest.raises(UsageError, match=says) as error:
        load(plan(saved(tmp_path, **changes), **people), split_key=KEY)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    people = {"person_column": "people", "max_rows_per_person": 2}
    with pytest.raises(UsageError, match=r"data\.person_column: .*no array 'people'.*arrays there: 'x', 'y'"):
        load(plan(saved(tmp_path), **people), split_key=KEY)
    natural = {"partition": {"kind": "natural", "column": "devise"}}
    with pytest.raises(UsageError, match=r"data\.partition\.column: .*did you mean 'device'"):
        load(plan(tmp_path, **natural), split_key=KEY)


def single_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda archive: b"", "is not an .npz archive"),
        (lambda archive: b"not an archive", "is not an .npz archive"),
        (lambda archive: b"PK\x03\x04 cut short", "is not an .npz archive"),
        (lambda archive: archive[:-200], "damaged"),
        (lambda archive: single_array(), "is a single array"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    path = saved(tmp_path) / "d.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UsageError, match=rf"d\.npz: .*{re.escape(says)}"):
        load(plan(tmp_path), split_key=KEY)
