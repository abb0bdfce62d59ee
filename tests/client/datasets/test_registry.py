"""Data sets by name."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from client.datasets.registry import load, names
from security.errors import UsageError
from shared_models.cards import KNOWN
from shared_models.plan_data import DataPlan

KEY = b"k" * 32


def test_every_set_with_a_card_has_a_loader() -> None:
    assert set(KNOWN) <= set(names())
    assert names() == tuple(sorted(names()))


def test_an_unknown_name_is_refused_with_the_known_ones_and_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean 'heart-disease'") as error:
        load(DataPlan(name="heart_disease"), split_key=KEY)
    assert all(name in str(error.value) for name in names())


def test_rule_10_the_key_decides_the_split_and_may_not_be_empty() -> None:
    one, other = (load(DataPlan(), split_key=key).test for key in (KEY, b"another"))
    assert len(one) != len(other) or not torch.equal(one.x, other.x)
    with pytest.raises(ValueError, match="rule 10"):
        load(DataPlan(), split_key=b"")


def test_a_plan_may_hold_nothing_out() -> None:
    whole, parts = (load(DataPlan(test_fraction=part), split_key=KEY) for part in (0.0, 0.2))
    assert (len(whole.train), len(whole.test)) == (1797, 0)
    assert whole.test.x.shape[1:] == whole.train.x.shape[1:]
    assert 0 < len(parts.test) < 1797


def test_rule_6_people_are_refused_where_the_data_names_none() -> None:
    with pytest.raises(UsageError, match=r"data\.person_column: data\.name = 'digits' has no column 'who'"):
        load(DataPlan(person_column="who", max_rows_per_person=2), split_key=KEY)


@pytest.mark.parametrize(
    ("card", "key"),
    [
        ({"classes": ["a", "b", "a "]}, "data.card.classes"),
        (
            {"classes": ["a", "b"], "columns": {"c": {"kind": "categorical", "values": ["x", " x"]}}},
            "data.card.columns.c.values",
        ),
    ],
)
def test_a_card_that_names_a_value_twice_is_refused(tmp_path: Path, card: dict[str, object], key: str) -> None:
    columns = {"n": {"kind": "numeric", "low": 0, "high": 1}}
    plan = DataPlan.model_validate({"name": "csv", "card": {"target": "t", "columns": columns} | card})
    with pytest.raises(UsageError, match=f"{key}: .* more than once"):
        load(plan, split_key=KEY)


def test_finding_the_sets_imports_no_library_that_reads_them() -> None:
    heavy = ["pandas", "sklearn", "datasets", "flwr_datasets", "PIL"]
    code = f"import sys, client.datasets.registry; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
