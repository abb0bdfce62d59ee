"""One's own records in other forms than CSV: the same table gives the same records, and what is wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from client.datasets.partition import client_records
from client.datasets.registry import load, load_file
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan_data import DataPlan
from shared_models.registry import build

KEY = b"k" * 32
ROWS = 60
COLUMNS = {
    "age": {"kind": "numeric", "low": 0, "high": 100},
    "sex": {"kind": "categorical", "values": ["f", "m"]},
}
FILES = {"csv": "t.csv", "parquet": "t.parquet", "jsonl": "t.jsonl", "hugging-face": "t"}


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": [float(n) if n % 7 else None for n in range(ROWS)],
            "sex": ["fm"[n % 2] for n in range(ROWS)],
            "ill": [n % 3 for n in range(ROWS)],
            "note": [f"patient feels {'bad' if n % 3 else 'good'} today {n}" for n in range(ROWS)],
            "person": [f"p{n // 4}" for n in range(ROWS)],
        }
    )


def saved(folder: Path, kind: str) -> Path:
    path, frame = folder / FILES[kind], table()
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "jsonl":
        rows = [{key: value for key, value in row.items() if pd.notna(value)} for row in frame.to_dict("records")]
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    else:
        from datasets import Dataset

        Dataset.from_pandas(frame).save_to_disk(str(path))
    return path


def plan(kind: str, path: Path, card: dict[str, Any] | None = None, **changes: Any) -> DataPlan:
    given = {"classes": ["0", "1", "2"], "target": "ill", "columns": COLUMNS} if card is None else card
    document = {"name": kind, "path": str(path), "card": given, "partition": {"kind": "iid", "clients": 3}}
    return DataPlan.model_validate(document | changes)


TEXT = {"classes": ["0", "1", "2"], "target": "ill", "text": "note"}


@pytest.mark.parametrize("kind", list(FILES))
def test_every_form_gives_the_records_of_the_table(tmp_path: Path, kind: str) -> None:
    expected = load(plan("csv", saved(tmp_path, "csv")), split_key=KEY, whole=True).train
    found = load(plan(kind, saved(tmp_path, kind)), split_key=KEY, whole=True).train
    assert len(found) == ROWS
    assert torch.equal(found.x, expected.x)
    assert torch.equal(found.y, expected.y)


@pytest.mark.parametrize("kind", list(FILES))
def test_a_column_of_texts_is_classified(tmp_path: Path, kind: str) -> None:
    data = plan(kind, saved(tmp_path, kind), TEXT, text={"places": 7, "vocabulary": 300})
    form = card_for(data).form
    assert (form.shape, form.vocabulary, form.classes) == ((7,), 300, 3)
    found = load(data, split_key=KEY, whole=True).train
    assert found.x.shape == (ROWS, 7)
    assert (found.x[0, 2] != found.x[1, 2]).item()  # good, bad
    assert build("recurrent", {"hidden": 4}, form=form, seed=1)(found.x).shape == (ROWS, 3)


@pytest.mark.parametrize("kind", list(FILES))
def test_columns_name_people_and_clients(tmp_path: Path, kind: str) -> None:
    changes = {"person_column": "person", "max_rows_per_person": 2, "partition": {"kind": "natural", "column": "sex"}}
    clients = client_records(plan(kind, saved(tmp_path, kind), **changes), seed=1, split_key=KEY)
    assert sorted(clients) == ["f", "m"]
    people = [name for own in clients.values() for name in (own.people if own.people is not None else [])]
    assert max(people.count(name) for name in people) <= 2


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "hugging-face"])
def test_a_site_may_have_its_file_in_any_form(tmp_path: Path, kind: str) -> None:
    asked = plan("csv", tmp_path / "elsewhere.csv")
    found = load_file(asked, kind=kind, path=saved(tmp_path, kind), split_key=KEY)
    assert len(found) == ROWS


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("jsonl", "", "the file is empty; it needs a JSON object a line"),
        ("jsonl", '{"age": 1}\n[1, 2]\n', "line 2 is not a JSON object; mend it"),
        ("jsonl", '{"age": 1}\n{"secret', "line 2 is not a JSON object; mend it"),
        ("jsonl", b"\xff\xfe", "is not UTF-8 text; save it so"),
        ("jsonl", '{"age": 1, "sex": "f"}\n', "has no column 'ill'"),
        ("parquet", "nothing", "Parquet file"),
        ("hugging-face", "nothing", "is no data set that save_to_disk has written"),
    ],
)
def test_what_cannot_be_read_is_one_line_without_a_value(
    tmp_path: Path, kind: str, content: str | bytes, reason: str
) -> None:
    path = tmp_path / FILES[kind]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=reason) as caught:
        load(plan(kind, path), split_key=KEY)
    text = str(caught.value)
    assert "\n" not in text
    assert "secret" not in text


def test_rule_5_half_a_character_ends_nothing(tmp_path: Path) -> None:
    """JSON can spell one. Were it an error, one record would keep all others from being trained on."""
    path = tmp_path / "t.jsonl"
    rows = [{"note": f"text {n}", "ill": n % 3, "person": f"p{n}"} for n in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)).replace("text 5", "te\\ud800xt").replace('"p7"', '"\\udfff"'))
    data = plan("jsonl", path, TEXT, person_column="person", max_rows_per_person=2)
    assert len(load(data, split_key=KEY, whole=True).train) == 20


@pytest.mark.parametrize(
    ("card", "reason"),
    [
        ({**TEXT, "columns": COLUMNS}, "needs data.card.target, and"),
        ({"classes": ["a", "b"], "target": "ill"}, "needs data.card.target, and"),
        ({**TEXT, "text": "ill"}, "is the target"),
    ],
)
def test_a_card_names_columns_or_a_text(tmp_path: Path, card: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load(plan("jsonl", tmp_path, card), split_key=KEY)
