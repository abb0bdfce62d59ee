"""A user's own CSV, from the plan to records, and what is said when plan and file don't fit."""

from pathlib import Path
from typing import Any

import pytest

from client.datasets.partition import client_records
from client.datasets.registry import load
from security.errors import UsageError
from shared_models.plan_data import DataPlan

KEY = b"k" * 32
HEADER = "age,sex,ill,person,site\n"


def plan(file: Path | None, **changes: Any) -> DataPlan:
    card = {
        "classes": ["no", "yes"],
        "target": "ill",
        "columns": {
            "age": {"kind": "numeric", "low": 0, "high": 100},
            "sex": {"kind": "categorical", "values": ["f", "m"]},
        },
    }
    given = {"name": "csv", "path": None if file is None else str(file), "card": card}
    return DataPlan.model_validate(given | changes)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "patients.csv"
    rows = [f"{n},{'fm'[n % 2]}, {'yes' if n % 3 else 'no'} ,p{n // 4},Site {n % 2}" for n in range(80)]
    path.write_text(HEADER + "\n".join(rows) + "\n")
    return path


def test_all_records_are_read_and_split(file: Path) -> None:
    loaded = load(plan(file), split_key=KEY)
    assert len(loaded.train) + len(loaded.test) == 80
    assert len(loaded.test) > 0
    assert loaded.card.input_shape == tuple(loaded.train.x.shape[1:]) == (5,)


def test_any_column_may_name_the_clients(file: Path) -> None:
    by_site = plan(file, partition={"kind": "natural", "column": "site"})
    assert list(client_records(by_site, seed=1, split_key=KEY)) == ["site-0", "site-1"]
    by_sex = plan(file, partition={"kind": "natural", "column": "sex"})
    assert list(client_records(by_sex, seed=1, split_key=KEY)) == ["f", "m"]


def test_rule_6_people_are_bounded_and_stay_on_one_side(file: Path) -> None:
    loaded = load(plan(file, person_column="person", max_rows_per_person=3), split_key=KEY)
    assert loaded.train.people is not None
    assert loaded.test.people is not None
    train, test = loaded.train.people.tolist(), loaded.test.people.tolist()
    assert not set(train) & set(test)
    assert {(train + test).count(f"p{n}") for n in range(20)} == {3}


def test_a_natural_partition_by_person_keeps_people_whole(file: Path) -> None:
    by_person = plan(
        file,
        person_column="person",
        max_rows_per_person=4,
        partition={"kind": "natural", "column": "person"},
    )
    clients = client_records(by_person, seed=1, split_key=KEY)
    assert {len(own) for own in clients.values()} == {4}
    for name, own in clients.items():
        assert own.people is not None
        assert set(own.people.tolist()) == {name}


def test_a_file_that_was_changed_is_read_again(file: Path) -> None:
    by_site = plan(file, partition={"kind": "natural", "column": "site"})
    before = client_records(by_site, seed=1, split_key=KEY)
    assert client_records(by_site, seed=1, split_key=KEY) is before
    file.write_text(file.read_text().replace("Site 1", "Ward B"))
    assert list(client_records(by_site, seed=1, split_key=KEY)) == ["site-0", "ward-b"]


def test_a_header_alone_is_a_data_set_without_records(tmp_path: Path) -> None:
    path = tmp_path / "none.csv"
    path.write_text(HEADER)
    assert len(load(plan(path), split_key=KEY).train) == 0


CARD = plan(None).model_dump(mode="json")["card"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"card": CARD | {"target": "il"}},
            r"data\.card\.target: .*'il' \(did you mean 'ill'\?\); columns there: 'age'",
        ),
        (
            {"card": CARD | {"columns": {"agee": {"kind": "numeric", "low": 0, "high": 1}}}},
            r"data\.card\.columns\.agee: .*did you mean 'age'",
        ),
        ({"person_column": "persn", "max_rows_per_person": 1}, r"data\.person_column: .*did you mean 'person'"),
        ({"partition": {"kind": "natural", "column": "Hospital"}}, r"data\.partition\.column: .*'Hospital'; columns"),
        ({"path": "/nowhere/at/all.csv"}, r"data\.path: /nowhere/at/all\.csv does not exist"),
        ({"path": None}, r"data\.path: .*needs the path"),
    ],
)
def test_what_plan_and_file_disagree_on_is_named_with_its_key(file: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        load(plan(file, **changes), split_key=KEY)
    assert "\n" not in str(error.value)


def test_a_file_without_header_does_not_show_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "bare.csv"
    path.write_text("63,f,yes,Jane Doe,North\n")
    with pytest.raises(UsageError, match="is the header line missing") as error:
        load(plan(path), split_key=KEY)
    assert "Jane" not in str(error.value)
