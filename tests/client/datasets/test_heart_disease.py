"""The vendored UCI heart disease file, as its source describes it."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from client.datasets import heart_disease
from client.datasets.records import Records
from client.datasets.registry import load
from security.errors import UsageError
from shared_models.cards import KNOWN
from shared_models.plan_data import DataPlan, NaturalPartition

KEY = b"k" * 32
CARD = KNOWN["heart-disease"]
PLAN = DataPlan(name="heart-disease", partition=NaturalPartition(column="hospital"))


def place(column: str) -> int:
    """First feature of a numeric column; its flag for missing is the next."""
    start = 0
    for name, described in CARD.columns.items():
        if name == column:
            return start
        start += 2 if described.kind == "numeric" else len(described.values) + 1
    raise AssertionError(column)


@pytest.fixture(scope="module")
def everybody() -> Records:
    records, test = heart_disease.load(PLAN, CARD)
    assert test is None
    return records


def test_the_four_hospitals_have_the_patients_their_source_counts(everybody: Records) -> None:
    assert Counter(everybody.groups["hospital"].tolist()) == {
        "cleveland": 303,
        "hungary": 294,
        "va-long-beach": 200,
        "switzerland": 123,
    }


def test_509_of_920_have_heart_disease(everybody: Records) -> None:
    assert len(everybody) == 920
    assert int(everybody.y.sum()) == 509
    assert CARD.classes == ("healthy", "disease")


def test_record_304_is_hungarys(everybody: Records) -> None:
    assert everybody.groups["hospital"][303] == "hungary"
    assert everybody.groups["hospital"][302] == "cleveland"


def test_a_cholesterol_of_0_is_missing_so_are_all_swiss_ones(everybody: Records) -> None:
    missing = everybody.x[:, place("chol") + 1] == 1
    hospital = everybody.groups["hospital"]
    assert bool(missing[torch.from_numpy(hospital == "switzerland")].all())
    assert int(missing.sum()) == 172 + 30  # noted as 0, and not noted
    assert bool((everybody.x[missing, place("chol")] == 0).all())


def test_a_blood_pressure_of_0_is_missing(everybody: Records) -> None:
    assert int(everybody.x[:, place("trestbps") + 1].sum()) == 59 + 1


def test_the_card_describes_the_columns_completely(everybody: Records) -> None:
    assert everybody.x.shape == (920, *CARD.input_shape)
    assert bool((everybody.x.abs() <= 2).all())
    for name in ("sex", "cp"):  # filled in for everybody: nobody in the place for "other"
        column = CARD.columns[name]
        assert column.kind == "categorical"
        assert int(everybody.x[:, place(name) + len(column.values)].sum()) == 0


def test_the_first_patient_is_encoded_as_in_the_file(everybody: Records) -> None:
    x = everybody.x[0]  # 63, Male, typical angina, 145, 233, ...
    assert x[place("age")].item() == pytest.approx(2 * (2 * (63 - 20) / 70 - 1))
    assert x[place("sex") :][:3].tolist() == [0, 1, 0]
    assert x[place("cp") :][:5].tolist() == [0, 0, 0, 1, 0]
    assert x[place("trestbps")].item() == pytest.approx(2 * (2 * (145 - 80) / 140 - 1))
    assert everybody.y[0] == 0


def test_a_column_left_out_cannot_be_asked_for() -> None:
    plan = DataPlan(name="heart-disease", partition=NaturalPartition(column="thal"))
    with pytest.raises(UsageError, match=r"no column 'thal'.*'hospital'"):
        load(plan, split_key=KEY)


def test_a_changed_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "heart.csv"
    changed.write_bytes(heart_disease.FILE.read_bytes().replace(b"Male", b"male", 1))
    monkeypatch.setattr(heart_disease, "FILE", changed)
    with pytest.raises(UsageError, match="was changed; install Veil again"):
        load(PLAN, split_key=KEY)


def test_source_and_licence_lie_beside_the_file() -> None:
    text = heart_disease.FILE.with_suffix(".LICENCE.md").read_text()
    assert heart_disease.SHA256 in text
    assert "CC BY 4.0" in text
    assert all(name in text for name in ("Janosi", "Steinbrunn", "Pfisterer", "Detrano"))
