"""`veil data check`: what it says training will do with records is what the loaders do with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.datasets.checking import check_against, check_data, kind_of
from client.datasets.findings import Checked, Finding
from client.datasets.registry import load_file
from client.datasets.schema_draft import draft_schema
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan_data import DataPlan
from shared_models.schema_card import read_schema

KEY = b"k" * 32
CARD = {
    "classes": ["no", "yes"],
    "target": "y",
    "columns": {
        "age": {"kind": "numeric", "low": 0, "high": 100},
        "sex": {"kind": "categorical", "values": ["f", "m"]},
    },
}
PEOPLE = {"person_column": "who", "max_rows_per_person": 2}
HEADER = "who,age,sex,y\n"
SECRET = "patient-4711"


def plan_data(**given: Any) -> DataPlan:
    return DataPlan.model_validate({"name": "csv", "card": CARD, **given})


def found_in(folder: Path, text: str | bytes, data: DataPlan | None = None, show: bool = False) -> Checked:
    path = folder / "rows.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    checked = check_data(path, "csv", data or plan_data(), integers=("age",), show=show)
    agrees(checked, path, "csv", data or plan_data())
    return checked


def agrees(checked: Checked, path: Path, kind: str, data: DataPlan) -> None:
    """What is said, against the loaders: how many records a private plan gets, and whether others get any."""
    if checked.refused(private=True):
        with pytest.raises(UsageError):
            load_file(data, kind=kind, path=path, split_key=KEY, leave_out=True)
    else:
        assert len(load_file(data, kind=kind, path=path, split_key=KEY, leave_out=True)) == checked.used
    if checked.refused(private=False):
        with pytest.raises(UsageError):
            load_file(data, kind=kind, path=path, split_key=KEY)
    else:
        assert len(load_file(data, kind=kind, path=path, split_key=KEY)) == checked.used


def codes(checked: Checked) -> dict[str, int]:
    return {f"{one.column}:{one.code}": one.rows for one in checked.findings}


def test_good_data_has_no_findings(tmp_path: Path) -> None:
    checked = found_in(tmp_path, HEADER + "a,30,f,no\nb,31,m,yes\n")
    assert (checked.records, checked.used, checked.findings) == (2, 2, ())


def test_everything_about_columns_is_counted(tmp_path: Path) -> None:
    text = HEADER + "\n".join(
        (
            "a,30,f,no",
            "a,30.5,f,no",
            "b,-1,f,no",
            "b,101,m,no",
            "c,,m,no",
            "c,nan,m,no",  # a code for a missing one
            "d,inf,m,no",
            "d,twelve,m,no",
            "e,1e999,m,no",
            "e,5,,no",
            "f,5,z,no",
            "f,5,m,maybe",
            "g,5,m,?",
            "g,5,m,NO",
        )
    )
    checked = found_in(tmp_path, text)
    assert codes(checked) == {
        "age:missing": 2,
        "age:not-finite": 2,
        "age:no-number": 1,
        "age:below": 1,
        "age:above": 1,
        "age:fraction": 1,
        "sex:missing": 1,
        "sex:other-value": 1,
        "y:label-missing": 1,
        "y:label-unknown": 2,
    }
    assert (checked.records, checked.used) == (14, 8)


def test_every_mixture_of_faults_is_dealt_with_as_it_is_said(tmp_path: Path) -> None:
    """Brute force: each age with each sex, label and person, in a file of its own and all in one."""
    ages, sexes = ("30", "", "inf", "x", "-inf", "1e400", "-5"), ("f", "", "z")
    rows = list(itertools.product(("a", "b", ""), ages, sexes, ("no", "", "oui")))
    data = plan_data(**PEOPLE)
    for row in rows:
        found_in(tmp_path, HEADER + ",".join(row) + "\n", data)
    found_in(tmp_path, HEADER + "\n".join(",".join(row) for row in rows) + "\n", data)


def test_of_people_with_too_many_records_the_rest_is_left_out(tmp_path: Path) -> None:
    text = HEADER + "a,1,f,no\n" * 5 + "b,1,f,no\nb,2,f,no\n,3,f,no\na,x,f,no\n"
    checked = found_in(tmp_path, text, plan_data(**PEOPLE))
    assert codes(checked) == {"age:no-number": 1, "who:person-missing": 1, "who:person-rows": 3}
    assert (checked.records, checked.used) == (9, 4)
    # Without the slips that others refuse, both kinds of plans have the same records.
    checked = found_in(tmp_path, HEADER + "a,1,f,no\n" * 5 + "b,1,f,no\n", plan_data(**PEOPLE))
    assert (checked.used, checked.refused(private=False)) == (3, False)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "unreadable"),
        ("who;age;sex;y\na;1;f;no\n", "delimiter"),
        ("who\tage\tsex\ty\na\t1\tf\tno\n", "delimiter"),
        (HEADER.encode() + "a,1,f,no\nb,1,für,no\n".encode("latin-1"), "unreadable"),
        (HEADER + "a,1,f\n", "unreadable"),
        (HEADER + "a,1,f,no,more\n", "unreadable"),
        (HEADER + 'a,"1,f,no\n', "unreadable"),
        ("who,age,age,y\na,1,2,no\n", "unreadable"),
        ("who,Age,sex,y\na,1,f,no\n", "no-column"),
        ("a,1,f,no\nb,2,f,yes\n", "no-column"),
    ],
)
def test_a_file_that_cant_be_used_is_said_to_be_refused(tmp_path: Path, text: str | bytes, code: str) -> None:
    checked = found_in(tmp_path, text)
    assert code in {one.code for one in checked.findings}
    assert checked.refused(private=True)
    assert checked.refused(private=False)
    assert checked.used == 0


def test_a_byte_order_mark_and_a_header_alone_are_told(tmp_path: Path) -> None:
    checked = found_in(tmp_path, b"\xef\xbb\xbf" + (HEADER + "a,1,f,no\n").encode())
    assert codes(checked) == {":byte-order-mark": 0}
    checked = found_in(tmp_path, HEADER)
    assert codes(checked) == {":empty": 0}
    assert checked.records == checked.used == 0


def test_texts_are_told_of_that_are_empty_or_cut(tmp_path: Path) -> None:
    data = DataPlan.model_validate(
        {
            "name": "csv",
            "card": {"classes": ["no", "yes"], "target": "y", "text": "note"},
            "text": {"tokens": "words", "places": 3},
        }
    )
    checked = found_in(tmp_path, "note,y\none two three,no\none two three four,yes\n,no\n", data)
    assert codes(checked) == {"note:text-empty": 1, "note:text-long": 1}


def test_no_value_of_a_record_is_shown_unless_it_is_asked_for(tmp_path: Path) -> None:
    text = HEADER + f"{SECRET},{SECRET},{SECRET},{SECRET}\n" * 9
    data = plan_data(**PEOPLE)
    assert SECRET not in repr(found_in(tmp_path, text, data))
    shown = found_in(tmp_path, text, data, show=True)
    assert next(one for one in shown.findings if one.code == "no-number").places == tuple(
        f"line {line}: '{SECRET}'" for line in range(2, 7)
    )
    broken = HEADER + f"{SECRET},1\n"
    assert SECRET not in repr(found_in(tmp_path, broken))
    assert SECRET not in repr(found_in(tmp_path, f"{SECRET},1,f,no\n"))  # a header that is missing


def test_json_lines_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"age": 5, "sex": "f", "y": "no"}\n{"age": 500, "y": "yes"}\n{"age": "x", "sex": "m", "y": "no"}\n'
    )
    assert kind_of(path) == "jsonl"
    data = plan_data(name="jsonl")
    checked = check_data(path, "jsonl", data)
    assert codes(checked) == {"age:no-number": 1, "age:above": 1, "sex:missing": 1}
    agrees(checked, path, "jsonl", data)
    path.write_text("[]\n")
    checked = check_data(path, "jsonl", data)
    assert checked.refused(private=True)
    agrees(checked, path, "jsonl", data)


PICTURES = DataPlan.model_validate(
    {"name": "image-folder", "card": {"classes": ["cat", "dog"], "input_shape": [1, 8, 8]}}
)


def test_images_are_told_of_by_what_is_wrong_with_them(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "cat" / "good.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "cat" / "colours.png")
    Image.new("L", (9, 8)).save(tmp_path / "dog" / "large.png")
    Image.new("I;16", (8, 8)).save(tmp_path / "dog" / "deep.png")
    (tmp_path / "dog" / "cut.png").write_bytes((tmp_path / "cat" / "good.png").read_bytes()[:40])
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    assert kind_of(tmp_path) == "image-folder"
    checked = check_data(tmp_path, "image-folder", PICTURES, show=True)
    assert codes(checked) == {":image-size": 1, ":image-depth": 1, ":image-damaged": 1, ":image-mode": 1}
    assert (checked.records, checked.used) == (5, 2)
    assert {one.code: one.places for one in checked.findings}["image-size"] == ("dog/large.png",)
    agrees(checked, tmp_path, "image-folder", PICTURES)


def test_folders_that_are_no_classes_are_told(tmp_path: Path) -> None:
    for name in ("cat", "wolf"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "good.png")
    checked = check_data(tmp_path, "image-folder", PICTURES)
    assert codes(checked) == {":folders": 0}
    assert checked.used == 1
    agrees(checked, tmp_path, "image-folder", PICTURES)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((4, 1, 8, 8), np.uint8), "y": np.array([0, 1, 1, 0])},
        {"x": np.zeros((4, 1, 8, 8), np.uint8), "y": np.array([0, 1, 2, -1])},
        {"x": np.full((4, 1, 8, 8), np.nan, np.float32), "y": np.zeros(4, int)},
        {"x": np.zeros((4, 1, 8, 9), np.uint8), "y": np.zeros(4, int)},
        {"x": np.zeros((4, 1, 8, 8), np.int64), "y": np.zeros(4, int)},
        {"x": np.zeros((4, 1, 8, 8), np.uint8), "y": np.zeros(3, int)},
        {"x": np.zeros((4, 1, 8, 8), np.uint8)},
        {"x": np.zeros((0, 1, 8, 8), np.uint8), "y": np.zeros(0, int)},
    ],
)
def test_arrays_are_judged_as_the_loader_does(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **arrays)
    data = PICTURES.model_copy(update={"name": "npz"})
    checked = check_data(path, kind_of(path), data)
    agrees(checked, path, "npz", data)


def test_of_arrays_too_people_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros((5, 1, 8, 8), np.uint8), y=np.zeros(5, int), who=np.array(list("aaabb")))
    data = PICTURES.model_copy(update={"name": "npz", **PEOPLE})
    checked = check_data(path, "npz", data)
    assert (checked.records, checked.used) == (5, 4)
    agrees(checked, path, "npz", data)


# --- drafts and schemas --------------------------------------------------------------------------------------------


def test_a_draft_tells_names_and_types_and_no_value(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = [f"{SECRET}{i},{37 + i},{1.5 * i},{'fm'[i % 2]},true,{'alive'[: 4 + i % 2]}" for i in range(40)]
    path.write_text("who,age,dose,sex,smokes,state\n" + "\n".join(lines) + "\n")
    text = draft_schema(path, "csv", person="who")
    for value in (SECRET, "37", "76", "58.5", '"f"', "aliv"):
        assert value not in text
    assert '[columns.age]\ntype = "integer"\nlow = "?"' in text
    assert '[columns.dose]\ntype = "number"' in text
    assert '[columns.sex]\ntype = "category"\nvalues = ["?"]' in text
    assert '[columns.smokes]\ntype = "boolean"' in text
    assert '[columns.state]\ntype = "label"' in text
    schema = tmp_path / "data.toml"
    schema.write_text(text)
    with pytest.raises(UsageError, match=r"person\.max_rows, columns\.age\.low.*still '\?' as drafted"):
        read_schema(schema)
    for open_still, given in (
        ('max_rows = "?"', "max_rows = 3"),
        ('low = "?"', "low = 0"),
        ('high = "?"', "high = 120"),
        ('"category"\nvalues = ["?"]', '"category"\nvalues = ["f", "m"]'),
        ('"label"\nvalues = ["?"]', '"label"\nvalues = ["aliv", "alive"]'),
    ):
        text = text.replace(open_still, given)
    schema.write_text(text)
    checked, private = check_against(path, "csv", schema=schema)
    assert (checked.findings, checked.used, private) == ((), 40, None)


def test_a_table_without_a_header_gets_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("37,f,yes\n38,m,no\n")
    with pytest.raises(UsageError, match="is the header line missing") as refused:
        draft_schema(path, "csv")
    said = str(refused.value).removeprefix(str(path))
    assert "37" not in said
    assert "38" not in said


def test_a_plan_says_whether_privacy_leaves_out_or_refuses(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("age,sex,y\n5,f,no\nx,f,no\n")
    (tmp_path / "data.toml").write_text(
        '[columns.age]\ntype = "number"\nlow = 0\nhigh = 100\n[columns.sex]\ntype = "category"\nvalues = ["f"]\n'
        '[columns.y]\ntype = "label"\nvalues = ["no", "yes"]\n'
    )
    plan = tmp_path / "plan.toml"
    head = '[data]\nname = "csv"\nschema = "data.toml"\npath = "rows.csv"\n'
    for trust, private in (('trust = "none"', False), ("epsilon = 1.0", True)):
        plan.write_text(head + f"[privacy]\n{trust}\n")
        checked, found = check_against(tmp_path / "rows.csv", "csv", plan=plan)
        assert found is private
        assert checked.refused(private=found) is not private
    with pytest.raises(UsageError, match="give --schema"):
        check_against(tmp_path / "rows.csv", "csv")
    other = tmp_path / "other.toml"
    other.write_text((tmp_path / "data.toml").read_text().replace("100", "99"))
    with pytest.raises(UsageError, match=r"data\.card is not what .*other\.toml says"):
        check_against(tmp_path / "rows.csv", "csv", plan=plan, schema=other)


def test_known_tables_are_checked_by_their_own_card(tmp_path: Path) -> None:
    path = tmp_path / "heart.csv"
    card = card_for(DataPlan(name="heart-disease"))
    names = [*card.columns, "num"]
    path.write_text(",".join(names) + "\n" + ",".join("" for _ in names[:-1]) + ",disease\n")
    checked = check_data(path, "csv", DataPlan(name="heart-disease"))
    assert all(isinstance(one, Finding) and one.code == "missing" for one in checked.findings)
    assert checked.used == 1
