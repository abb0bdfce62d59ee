"""Questions are checked by the data's card before a model sees them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from client.datasets.tabular import table_records
from security.errors import UsageError
from server.export.inputs import Inputs
from shared_models.cards import card_for
from shared_models.plan import Plan

CARD = {
    "classes": ["no", "yes"],
    "target": "ill",
    "columns": {
        "age": {"kind": "numeric", "low": 0, "high": 100},
        "sex": {"kind": "categorical", "values": ["f", "m"]},
    },
}


def inputs(**data: object) -> Inputs:
    document = {"partition": {"kind": "iid", "clients": 2}, **data}
    return Inputs.of(Plan.model_validate({"data": document, "model": {"name": "mlp"}}))


TABLE = inputs(name="csv", path="x.csv", card=CARD)
VALUES = inputs(name="digits")
TEXT = inputs(name="sentiment", text={"places": 5, "vocabulary": 100})


def test_a_record_is_encoded_as_a_site_encodes_its_table() -> None:
    import pandas as pd

    questions = [{"age": 40, "sex": "m"}, {"age": None, "sex": "x"}, {"age": "300", "sex": " f "}]
    table = pd.DataFrame({"age": ["40", "", "300"], "sex": ["m", "x", "f"], "ill": ["no"] * 3}, dtype=str)
    plan = Plan.model_validate({"data": {"name": "csv", "path": "x.csv", "card": CARD}, "model": {"name": "mlp"}})
    there = table_records(table, plan.data, card_for(plan.data), source="here")
    assert torch.equal(torch.from_numpy(TABLE.encode(questions)), there.x)


def test_values_and_texts_are_what_the_model_takes() -> None:
    image = np.arange(64.0).reshape(1, 8, 8)
    assert np.array_equal(VALUES.encode([image.tolist()]), image[None].astype(np.float32))
    found = TEXT.encode(["good good film", ""])
    assert found.shape == (2, 5)
    assert found[0, 0] == found[0, 1] != found[0, 2] != 0
    assert not found[1].any()


@pytest.mark.parametrize(
    ("form", "question", "reason"),
    [
        (TABLE, {"age": 1}, "inputs[0]: lacks sex; columns: age, sex"),
        (TABLE, {"age": 1, "sex": "m", "x": 2}, "inputs[0]: has columns that aren't known; columns: age, sex"),
        (TABLE, {"age": 1, "sex": ["m"]}, "inputs[0].sex: should be a text, a number or null"),
        (TABLE, {"age": 1, "sex": {"m": 1}}, "inputs[0].sex: should be a text, a number or null"),
        (TABLE, {"age": 1, "sex": "\ud800"}, "inputs[0].sex: holds a character that is none"),
        (TABLE, {"age": "old", "sex": "m"}, "inputs[0].age: should be a number, or null"),
        (TABLE, {"age": float("inf"), "sex": "m"}, "inputs[0].age: should be a number, or null"),
        (TABLE, [1, 2], "inputs[0]: should be an object"),
        (VALUES, [[1.0]], "inputs[0]: has shape (1, 1), should have (1, 8, 8)"),
        (VALUES, "x", "inputs[0]: should be numbers in nested lists"),
        (VALUES, [[[1.0] * 8] * 7 + [[1.0] * 7]], "inputs[0]: should be numbers in nested lists"),
        (VALUES, [[[float("nan")] * 8] * 8], "inputs[0]: holds a number that is not finite"),
        (VALUES, [[[1e300] * 8] * 8], "inputs[0]: holds a number that is not finite, or too large"),
        (VALUES, [[[10**400] * 8] * 8], "inputs[0]: should be numbers in nested lists"),
        (VALUES, [[["2.5"] * 8] * 8], "inputs[0]: should be numbers in nested lists"),
        (VALUES, [[[True] * 8] * 8], "inputs[0]: should be numbers in nested lists"),
        (TEXT, "a \ud800", "inputs[0]: holds a character that is none"),
        (TEXT, 5, "inputs[0]: should be a text"),
        (TEXT, "x" * 70_000, "inputs[0]: is longer than 65536 characters"),
    ],
)
def test_what_is_no_question_is_refused_by_its_number(form: Inputs, question: object, reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        form.encode([question])
    assert str(caught.value).startswith(reason)
    good: dict[str, object] = {"table": {"age": 1, "sex": "m"}, "values": np.zeros((1, 8, 8)).tolist(), "text": "x"}
    with pytest.raises(UsageError, match=r"inputs\[1\]"):
        form.encode([good[form.kind], question])
