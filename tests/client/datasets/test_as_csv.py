"""A public table as CSV: what was written is read again as the same records."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from client.datasets import as_csv
from client.datasets.as_csv import write_csv
from client.datasets.heart_disease import mended
from client.datasets.tabular import read_table, table_records
from security.errors import UsageError
from shared_models.cards import KNOWN
from shared_models.plan_data import DataPlan
from tests.shared_models.fetching import fetch_or_skip


def test_the_file_holds_what_the_set_does(tmp_path: Path) -> None:
    card, data = KNOWN["heart-disease"], DataPlan(name="heart-disease")
    assert write_csv("heart-disease", tmp_path / "deep" / "h.csv") == {tmp_path / "deep" / "h.csv": 920}
    there, here = (
        table_records(table, data, card, source="x")
        for table in (read_table(tmp_path / "deep" / "h.csv"), mended(card))
    )
    assert torch.equal(there.x, here.x)
    assert torch.equal(there.y, here.y)


def test_by_a_column_each_record_is_in_one_file(tmp_path: Path) -> None:
    made = write_csv("heart-disease", tmp_path, by="hospital")
    assert {path.stem: n for path, n in made.items()} == {
        "cleveland": 303,
        "hungary": 294,
        "switzerland": 123,
        "va-long-beach": 200,
    }
    rows = [line for path in made for line in path.read_text().splitlines()[1:]]
    assert len(set(rows)) == 920
    assert set(read_table(tmp_path / "hungary.csv")["hospital"]) == {"hungary"}


def test_adult_is_there_with_both_parts_and_all_columns(tmp_path: Path) -> None:
    fetch_or_skip("adult")
    write_csv("adult", tmp_path / "a.csv")
    table = read_table(tmp_path / "a.csv")
    assert len(table) == 48_842
    assert {"fnlwgt", "education", "native-country"} <= set(table.columns)
    assert set(table["income"]) == {"<=50K", ">50K"}


@pytest.mark.parametrize(
    ("name", "by", "reason"),
    [
        ("digits", None, "digits: is not a table; tables: adult, heart-disease"),
        ("heart", None, "heart: is not a table"),
        ("heart-disease", "hospitals", "did you mean 'hospital'"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, name: str, by: str | None, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_csv(name, tmp_path / "x", by=by)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    mine = tmp_path / "hungary.csv"
    mine.write_text("mine")
    for out, by in ((mine, None), (tmp_path, "hospital")):
        with pytest.raises(UsageError, match="is there already"):
            write_csv("heart-disease", out, by=by)
    assert [path.name for path in tmp_path.iterdir()] == ["hungary.csv"]
    assert mine.read_text() == "mine"


def test_values_that_make_one_name_are_told_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    monkeypatch.setattr(as_csv, "_TABLES", {"heart-disease": lambda: pd.DataFrame({"a": ["St Mary", "st-mary"]})})
    with pytest.raises(UsageError, match="make the same name of a file"):
        write_csv("heart-disease", tmp_path, by="a")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        write_csv("heart-disease", tmp_path / "file" / "h.csv")
