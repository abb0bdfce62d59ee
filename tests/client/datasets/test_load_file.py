"""A file of one's own, read by the card: as in a simulation, without a partition, with errors that show no value."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from client.datasets import heart_disease
from client.datasets.records import Records
from client.datasets.registry import load, load_file, misfit
from client.datasets.split import bound_rows_per_person
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan_data import DataPlan, NaturalPartition

KEY = b"k" * 32
SECRET = "patient-4711"
TABLE = {
    "classes": ["no", "yes"],
    "target": "y",
    "columns": {
        "age": {"kind": "numeric", "low": 0, "high": 100},
        "sex": {"kind": "categorical", "values": ["f", "m"]},
    },
}
PICTURES = {"classes": ["cat", "dog"], "input_shape": [1, 8, 8]}


def data_of(**given: Any) -> DataPlan:
    return DataPlan.model_validate(given)


def same(one: Records, other: Records) -> bool:
    return torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_digits_saved_as_arrays_are_the_digits(tmp_path: Path) -> None:
    data = data_of(name="digits")
    whole = load(data, split_key=KEY, whole=True).train
    card = card_for(data)
    np.savez(tmp_path / "x.npz", x=(whole.x.numpy() * card.std + card.mean).astype(np.float32), y=whole.y.numpy())
    assert same(load_file(data, kind="npz", path=tmp_path / "x.npz", split_key=KEY), whole)


def test_patients_of_one_hospital_are_those_of_its_virtual_client(tmp_path: Path) -> None:
    data = data_of(name="heart-disease", partition={"kind": "natural", "column": "hospital"})
    table = heart_disease.mended(card_for(data))
    own = table[table["hospital"] == "cleveland"].drop(columns="hospital")
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(own.columns)
        writer.writerows(own.to_numpy().tolist())
    whole = load(data, split_key=KEY, whole=True).train
    expected = whole.take(np.flatnonzero(whole.groups["hospital"] == "cleveland"))
    found = load_file(data, kind="csv", path=tmp_path / "rows.csv", split_key=KEY)
    assert len(found) == 303
    assert same(found, expected)
    assert dict(found.groups) == {}  # there is nothing to spread over clients


def test_a_folder_of_images(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    pillow.fromarray(pixels).save(tmp_path / "dog" / "a.png")
    found = load_file(data_of(name="pets", card=PICTURES), kind="image-folder", path=tmp_path, split_key=KEY)
    assert found.y.tolist() == [1]
    np.testing.assert_allclose(found.x[0, 0].numpy(), pixels / 255, rtol=1e-6)


def test_a_name_of_ones_own_may_stand_for_any_file_that_the_plan_describes(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", "age,sex,y,more", "50,f,no,1", ",x,yes,2")
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 5), np.float32), y=np.array([0, 1, 1]))
    assert len(load_file(data_of(name="csv", card=TABLE), kind="csv", path=rows, split_key=KEY)) == 2
    with_shape = {"classes": ["no", "yes"], "input_shape": [5]}
    found = load_file(data_of(name="wards", card=with_shape), kind="npz", path=tmp_path / "x.npz", split_key=KEY)
    assert len(found) == 3


def test_where_the_plan_says_its_data_lies_is_never_looked_at(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.csv", "age,sex,y", "50,f,no")
    theirs = write(tmp_path / "theirs.csv", "age,sex,y", "50,f,no", "60,m,yes")
    data = data_of(name="csv", path=str(theirs), card=TABLE)
    assert len(load_file(data, kind="csv", path=mine, split_key=KEY)) == 1


def test_rule_6_a_persons_rows_are_bounded_by_the_sites_own_secret(tmp_path: Path) -> None:
    lines = [f"{10 * person + row},f,no,{person}" for person in range(5) for row in range(4)]
    rows = write(tmp_path / "rows.csv", "age,sex,y,patient", *lines)
    data = data_of(name="csv", card=TABLE, person_column="patient", max_rows_per_person=2)
    found = load_file(data, kind="csv", path=rows, split_key=KEY)
    assert len(found) == 10
    assert found.people is not None
    assert sorted(found.people) == sorted("0011223344")
    unbounded = load_file(
        data_of(name="csv", card=TABLE, person_column="patient", max_rows_per_person=4),
        kind="csv",
        path=rows,
        split_key=KEY,
    )
    assert same(found, bound_rows_per_person(unbounded, key=KEY, most=2))
    assert not same(found, load_file(data, kind="csv", path=rows, split_key=b"another"))


def test_a_split_without_a_secret_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split_key is empty"):
        load_file(data_of(name="digits"), kind="npz", path=tmp_path, split_key=b"")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["age,sex,y", "50,f,no", f"{SECRET},f,no"], "line 3, column 'age': is not a finite number nor one of"),
        (["age,sex,y", "inf,f,no"], "line 2, column 'age': is not a finite number nor one of"),
        (["age,sex,y", f"50,f,{SECRET}"], "line 2, column 'y': is not one of the classes (no, yes) (1 such lines)"),
        (["age,sex", "50,f"], "data.card.target: "),
        (["age,gender,y", "50,f,no"], "data.card.columns.sex: "),
        (["age,sex,y", f"50,f,no,{SECRET}"], "line 2 has 4 fields, the header 3; mend it"),
        (["age,sex,y,y", "50,f,no,no"], "the header repeats columns: 'y'"),
        ([f"50,f,no,{SECRET}", f"51,m,yes,{SECRET}"], "data.card.target: "),  # no header line
    ],
)
def test_rule_5_a_table_that_is_not_as_described_gives_one_line_without_a_value(
    tmp_path: Path, lines: list[str], expected: str
) -> None:
    rows = write(tmp_path / "rows.csv", *lines)
    with pytest.raises(UsageError) as found:
        load_file(data_of(name="csv", card=TABLE), kind="csv", path=rows, split_key=KEY)
    assert expected in str(found.value)
    assert "\n" not in str(found.value)
    assert SECRET not in str(found.value)


def _as_arrays(folder: Path, *, unfit: bool) -> tuple[DataPlan, str, Path]:
    x, y = np.zeros((5, 1, 8, 8), dtype=np.float32), np.array([0, 1, 0, 1, 0])
    x += np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    if unfit:
        x[1, 0, 3, 3], y[2] = np.nan, 7
    else:
        x, y = x[[0, 3, 4]], y[[0, 3, 4]]
    np.savez(folder / "x.npz", x=x, y=y)
    return data_of(name="scans", card=PICTURES), "npz", folder / "x.npz"


def _as_table(folder: Path, *, unfit: bool) -> tuple[DataPlan, str, Path]:
    wrong = ["p1,30,f,perhaps", "p1,old,m,no", ",33,m,yes"] if unfit else []
    path = write(folder / "x.csv", "person,age,sex,y", "p1,31,f,no", *wrong, "p2,32,m,yes")
    return data_of(name="csv", card=TABLE, person_column="person", max_rows_per_person=3), "csv", path


def _as_folder(folder: Path, *, unfit: bool) -> tuple[DataPlan, str, Path]:
    kinds = ("cat", "dog", "horse") if unfit else ("cat", "dog")
    for kind in kinds:
        (folder / "x" / kind).mkdir(parents=True)
        Image.new("L", (8, 8), 40).save(folder / "x" / kind / "a.png")
    if unfit:
        Image.new("L", (9, 9), 40).save(folder / "x" / "cat" / "large.png")
        (folder / "x" / "cat" / "broken.png").write_bytes(b"no image")
    return data_of(name="pets", card=PICTURES), "image-folder", folder / "x"


@pytest.mark.parametrize("kind", [_as_arrays, _as_table, _as_folder])
def test_rule_5_records_that_a_plans_card_does_not_describe_can_be_left_out_each_by_itself(
    tmp_path: Path, kind: Callable[..., tuple[DataPlan, str, Path]]
) -> None:
    """Else a plan could ask by its card whether a record is there, and be told by the site's failure."""
    found = []
    for unfit in (True, False):
        folder = tmp_path / str(unfit)
        folder.mkdir()
        data, form, path = kind(folder, unfit=unfit)
        if unfit:
            with pytest.raises(UsageError):
                load_file(data, kind=form, path=path, split_key=KEY)
        found.append(load_file(data, kind=form, path=path, split_key=KEY, leave_out=True))
    assert len(found[1]) >= 2
    assert same(*found)


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"x": np.full((2, 1, 8, 8), np.nan), "y": np.array([0, 1])}, "128 of 128 values of x are NaN or infinite"),
        ({"x": np.zeros((2, 8, 8)), "y": np.array([0, 1])}, "x has shape (2, 8, 8)"),
        ({"x": np.zeros((2, 1, 8, 8)), "y": np.array([0, 7])}, "1 of 2 labels are not in 0 to 1"),
        ({"x": np.zeros((2, 1, 8, 8)), "y": np.array([0.0, 1.0])}, "y is float64"),
        ({"x": np.zeros((2, 1, 8, 8))}, "has no array 'y'"),
    ],
)
def test_arrays_that_are_not_as_described_give_one_line(tmp_path: Path, arrays: dict[str, Any], expected: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UsageError) as found:
        load_file(data_of(name="pets", card=PICTURES), kind="npz", path=tmp_path / "x.npz", split_key=KEY)
    assert expected in str(found.value)
    assert "\n" not in str(found.value)


def test_a_file_that_is_not_there_is_said_without_talk_of_a_plans_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as found:
        load_file(data_of(name="csv", card=TABLE), kind="csv", path=tmp_path / "gone.csv", split_key=KEY)
    assert str(found.value) == (
        f"{tmp_path}/gone.csv: the data for data.name = 'csv' does not exist; put it there, or mend the path"
    )
    assert "--set" not in str(found.value)


@pytest.mark.parametrize(
    ("data", "kind", "fits"),
    [
        (data_of(name="digits"), "npz", True),
        (data_of(name="digits"), "image-folder", True),
        (data_of(name="digits"), "csv", False),
        (data_of(name="heart-disease"), "csv", True),
        (data_of(name="heart-disease"), "npz", True),
        (data_of(name="heart-disease"), "image-folder", False),
        (data_of(name="pets", card=PICTURES, person_column="a", max_rows_per_person=1), "image-folder", False),
        (data_of(name="pets", card=PICTURES, person_column="a", max_rows_per_person=1), "npz", True),
    ],
)
def test_whether_a_kind_of_file_can_hold_the_data_is_known_from_public_facts(
    tmp_path: Path, data: DataPlan, kind: str, fits: bool
) -> None:
    assert (misfit(data, kind) is None) == fits
    if not fits:
        with pytest.raises(UsageError, match=r"can't hold it|names nobody"):
            load_file(data, kind=kind, path=tmp_path, split_key=KEY)


def test_no_library_of_simulations_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "flwr_datasets", "ray"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = write(tmp_path / "rows.csv", "age,sex,y", "50,f,no")
    data = data_of(name="csv", card=TABLE, partition=NaturalPartition(column="nowhere"))
    assert len(load_file(data, kind="csv", path=rows, split_key=KEY)) == 1


def test_rule_5_numbers_that_are_no_tokens_are_left_out_each_by_itself(tmp_path: Path) -> None:
    """An embedding would fail at them in the midst of training, and tell whoever chose the vocabulary."""
    data = DataPlan.model_validate(
        {"name": "sentiment", "text": {"vocabulary": 100, "places": 3}, "partition": {"kind": "iid"}}
    )
    x = np.array([[1, 2, 0], [900, 1, 0], [-1, 2, 3], [1.5, 2, 3], [99, 0, 0]], dtype=np.float32)
    np.savez(tmp_path / "t.npz", x=x, y=np.zeros(5, dtype=np.int64))
    kept = load_file(data, kind="npz", path=tmp_path / "t.npz", split_key=b"k", leave_out=True)
    assert kept.x.tolist() == [[1, 2, 0], [99, 0, 0]]
    with pytest.raises(UsageError, match="3 of 5 records hold numbers that are no tokens"):
        load_file(data, kind="npz", path=tmp_path / "t.npz", split_key=b"k")


def test_a_language_models_records_are_in_no_file_of_ones_own(tmp_path: Path) -> None:
    data = DataPlan.model_validate({"name": "shakespeare", "partition": {"kind": "iid"}})
    (tmp_path / "t.npz").write_bytes(b"")
    with pytest.raises(UsageError, match="has a label at each place"):
        load_file(data, kind="npz", path=tmp_path / "t.npz", split_key=b"k")
