"""`data.toml`: it says what a plan's card says, and a plan that names it is the plan with the card in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from security.errors import UsageError
from shared_models.plan_data import DataPlan
from shared_models.plan_file import parse_plan, read_plan, write_plan
from shared_models.plan_keys import plan_keys
from shared_models.schema_card import SchemaCard, plan_tables, read_schema, schema_of, write_schema

FULL = """\
name = "clinics"
description = "Readmission after surgery."
licence = "as agreed"
source = "the clinics' own books"
missing = ["", "-9"]
groups = ["clinic"]

[person]
column = "patient"
max_rows = 4

[columns.age]
type = "integer"
low = 0
high = 110
spread = 2.0
unit = "years"

[columns.dose]
type = "number"
low = 0
high = 2.5
unit = "mg"

[columns.sex]
type = "category"
values = ["female", "male"]

[columns.smokes]
type = "boolean"
values = ["no", "yes"]

[columns.remarks]
type = "text"
feature = false

[columns.readmitted]
type = "label"
values = ["no", "yes"]
"""

CARD = """\
[data]
name = "csv"
path = "rows.csv"
person_column = "patient"
max_rows_per_person = 4

[data.card]
classes = ["no", "yes"]
target = "readmitted"
missing = ["", "-9"]

[data.card.columns]
age = { kind = "numeric", low = 0, high = 110, spread = 2.0 }
dose = { kind = "numeric", low = 0, high = 2.5 }
sex = { kind = "categorical", values = ["female", "male"] }
smokes = { kind = "categorical", values = ["no", "yes"] }
"""


def schema(folder: Path, text: str = FULL) -> Path:
    path = folder / "data.toml"
    path.write_text(text)
    return path


def test_a_plan_that_names_a_schema_is_the_plan_with_its_card(tmp_path: Path) -> None:
    """In meaning, and so in digest; what travels names no file."""
    schema(tmp_path)
    (tmp_path / "named.toml").write_text('[data]\nname = "csv"\npath = "rows.csv"\nschema = "data.toml"\n')
    (tmp_path / "written.toml").write_text(CARD)
    named, written = (read_plan(tmp_path / name) for name in ("named.toml", "written.toml"))
    assert named == written
    assert named.digest() == written.digest()
    assert "schema" not in write_plan(named)


def test_an_override_may_name_one_and_others_change_what_it_says(tmp_path: Path, monkeypatch: Any) -> None:
    schema(tmp_path)
    (tmp_path / "plan.toml").write_text('[data]\nname = "csv"\npath = "rows.csv"\n')
    monkeypatch.chdir(tmp_path)
    found = read_plan(tmp_path / "plan.toml", ["data.schema=data.toml", "data.max_rows_per_person=2"])
    assert found.data.person_column == "patient"
    assert found.data.max_rows_per_person == 2


def test_only_a_plan_that_is_read_from_its_own_file_may_name_one(tmp_path: Path) -> None:
    """A plan from elsewhere would have a site read a file of the sender's choice."""
    path = schema(tmp_path)
    with pytest.raises(UsageError, match=r"data\.schema: unknown key"):
        parse_plan(f'[data]\nname = "csv"\nschema = "{path}"\n', where="offer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nname = "csv"\nschema = "data.toml"\n[data.card]\nclasses = ["a", "b"]\n', r"data\.card is what data"),
        ('[data]\nname = "csv"\nschema = 3\n', r"data\.schema = 3: should be the path"),
        ('[data]\nname = "csv"\nschema = "nowhere.toml"\n', r"nowhere\.toml: can't be read"),
    ],
)
def test_what_cant_be_read_or_contradicts_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    schema(tmp_path)
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=message) as refused:
        read_plan(tmp_path / "plan.toml")
    assert "\n" not in str(refused.value)


CARDS: dict[str, dict[str, Any]] = {
    "table": {
        "name": "csv",
        "person_column": "who",
        "max_rows_per_person": 3,
        "card": {
            "classes": ["a", "b", "c"],
            "target": "y",
            "missing": ["?"],
            "columns": {
                "v": {"kind": "numeric", "low": -1.0, "high": 1.0, "spread": 3.0},
                "a column": {"kind": "categorical", "values": ["x", "y"]},
            },
        },
        "normalisation": {"statistics": "0" * 64, "columns": {"v": {"mean": 0.1, "scale": 0.5}}},
    },
    "text": {
        "name": "jsonl",
        "card": {"classes": ["a", "b"], "target": "y", "text": "note"},
        "text": {"tokens": "characters", "places": 32},
    },
    "image": {"name": "image-folder", "card": {"classes": ["a", "b"], "input_shape": [3, 8, 8], "mean": 0.5}},
    "array": {"name": "npz", "card": {"classes": ["a", "b"], "input_shape": [6, 128], "mean": 1.5, "std": 2.0}},
}


@pytest.mark.parametrize("kind", CARDS)
def test_whatever_a_plans_card_says_a_schema_can_say_and_back(tmp_path: Path, kind: str) -> None:
    data = DataPlan.model_validate(CARDS[kind])
    made = schema_of(data)
    path = schema(tmp_path, write_schema(made))
    assert read_schema(path) == made
    again = plan_tables(read_schema(path))
    for key in ("card", "person_column", "max_rows_per_person", "text", "normalisation"):
        assert again.get(key) == getattr(data, key), key


def test_a_full_schema_is_written_and_read_as_it_was(tmp_path: Path) -> None:
    found = read_schema(schema(tmp_path))
    assert read_schema(schema(tmp_path, write_schema(found))) == found
    assert found.label == "readmitted"
    assert found.is_table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('type = "label"\nvalues', 'type = "category"\nvalues'), r"0 have type = 'label'"),
        (('type = "text"\nfeature = false', 'type = "text"'), "'remarks' is a text, which is seen alone"),
        (('unit = "mg"', "mean = 1.0"), "mean and scale go together"),
        (('unit = "mg"', "mean = 1.0\nscale = 2.0"), "mean and scale need statistics"),
        (("high = 110", "high = 0"), "must be below"),
        (("high = 110", 'high = "?"'), r"columns\.age\.high: still '\?'"),
        (('type = "integer"', 'type = "int"'), r"columns\.age\.type = 'int': .*allowed: 'number', 'integer'"),
        (("low = 0\nhigh = 110", "lowest = 0\nhigh = 110"), r"columns\.age\.lowest: unknown key"),
        (("max_rows = 4", "max_rows = 0"), r"person\.max_rows = 0"),
    ],
)
def test_a_schema_that_makes_no_sense_is_refused_by_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in FULL
    with pytest.raises(UsageError, match=message):
        read_schema(schema(tmp_path, FULL.replace(*change)))


def test_a_missing_code_may_be_a_question_mark(tmp_path: Path) -> None:
    found = read_schema(schema(tmp_path, FULL.replace('["", "-9"]', '["?"]')))
    assert found.missing == ("?",)


def test_sets_that_bring_their_card_need_no_schema() -> None:
    with pytest.raises(UsageError, match="brings its own card"):
        schema_of(DataPlan(name="adult"))


def test_the_key_is_among_those_of_a_plan() -> None:
    assert "data.schema" in [key.path for key in plan_keys()]
    assert isinstance(SchemaCard.model_fields["columns"].description, str)
