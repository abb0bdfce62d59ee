"""A whole evaluation: what is in it, that its files are as promised, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from security.errors import UsageError
from server.assessment.assess import Subject, assess
from server.assessment.facts import Evaluation, json_text
from server.assessment.page import html
from server.evaluation import TestData, metrics_of
from shared_models.plan import Plan

SCHEMA = json.loads((Path(__file__).parents[3] / "docs/schemas/evaluation.schema.json").read_text("utf-8"))
N = 300


class Table(torch.nn.Module):
    """Gives logits that are in its examples."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def subject(classes: int = 2, **more: Any) -> Subject:
    data: dict[str, Any] = {"name": "heart-disease", "partition": {"kind": "natural", "column": "hospital"}}
    if classes == 10:
        data = {"name": "digits"}
    plan = Plan.model_validate({"name": "run", "data": data, "privacy": {"trust": "none"}})
    return Subject(plan=plan, setting="simulation", model_digest="0" * 64, best=False, source="server", **more)


def drawn(classes: int) -> TestData:
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, classes, (N,), generator=generator)
    return TestData(torch.randn((N, classes), generator=generator) + torch.nn.functional.one_hot(y, classes), y)


def columns(**values: list[str]) -> dict[str, np.ndarray]:
    return {name: np.array([own[i % len(own)] for i in range(N)]) for name, own in values.items()}


def made(classes: int = 2, **more: Any) -> Evaluation:
    asked = {key: more.pop(key) for key in ("by", "positive") if key in more}
    return assess(Table(), drawn(classes), subject(classes, **more), **asked)


def test_what_is_known_of_the_whole_is_as_in_every_other_evaluation() -> None:
    data, found = drawn(2), made()
    known = metrics_of(data.x, data.y)
    assert found.accuracy is not None
    assert (found.accuracy.value, found.loss, found.auc, found.balanced_accuracy, found.n) == (
        known["accuracy"], known["loss"], known["auc"], known["balanced_accuracy"], N
    )  # fmt: skip


@pytest.mark.parametrize(
    "facts",
    [
        made(),
        made(by="sex", columns=columns(sex=["F", "M", "M"])),
        made(owners=columns(c=["aare", "<script>", ""])["c"]),
        made(10),
        made(10, by="<i>", positive="3", columns=columns(**{"<i>": ["x", "</td>"]})),
    ],
)
def test_its_files_are_as_promised(facts: Evaluation) -> None:
    text = json_text(facts)
    jsonschema.validate(json.loads(text), SCHEMA)
    assert Evaluation.from_json(json.loads(text)) == facts
    page = html(facts)
    assert page.count("<script>") == 1
    assert "<i>" not in page
    assert "style=" not in page
    assert "no private release" in page


def test_every_value_of_a_schema_says_what_it_means() -> None:
    for name, kind in [("", SCHEMA), *SCHEMA["$defs"].items()]:
        assert kind["additionalProperties"] is False
        assert set(kind["required"]) == set(kind["properties"])
        for key, value in kind["properties"].items():
            assert value.get("description"), f"{name}.{key}"


def test_of_two_classes_the_last_is_the_positive_one_and_of_more_none() -> None:
    two = made(by="sex", columns=columns(sex=["F", "M"]))
    assert two.groups is not None
    assert two.groups.positive == "disease"
    ten = made(10, by="sex", columns=columns(sex=["F", "M"]))
    assert ten.groups is not None
    assert (ten.groups.positive, [gap.measure for gap in ten.groups.gaps]) == (None, ["accuracy"])
    asked = made(10, by="sex", positive="7", columns=columns(sex=["F", "M"]))
    assert asked.groups is not None
    assert asked.groups.positive == "7"


def test_a_class_that_isnt_there_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"--positive 'disese': did you mean .*the classes are healthy, disease"):
        made(positive="disese")


def test_too_many_groups_are_refused_without_a_value() -> None:
    secret = [f"person-{i}" for i in range(N)]
    with pytest.raises(UsageError, match="--by who: has 300 values") as refused:
        made(by="who", columns=columns(who=secret))
    assert "person-" not in str(refused.value)


def test_missing_values_are_a_group_of_their_own() -> None:
    found = made(by="sex", columns=columns(sex=["F", "", "M"]))
    assert found.groups is not None
    assert [row.name for row in found.groups.rows] == ["F", "M", "missing"]


def test_without_clients_it_says_so() -> None:
    assert any("belongs to a client" in remark for remark in made().remarks)
    assert made().clients is None


def test_a_model_whose_logits_are_not_finite_is_wrong_and_not_calibrated() -> None:
    data = drawn(2)
    data.x[:30] = float("nan")
    found = assess(Table(), data, subject())
    whole = assess(Table(), drawn(2), subject())
    assert found.accuracy is not None
    assert whole.accuracy is not None
    assert found.accuracy.value < whole.accuracy.value
    assert (found.loss, found.calibration) == (None, None)
    jsonschema.validate(json.loads(json_text(found)), SCHEMA)
    assert "How sure it is" not in html(found)


class NextIsSame(torch.nn.Module):
    """Says that the next token is this one."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = torch.nn.Parameter(torch.eye(tokens) * 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tokens[x.long()]


def test_a_language_model_is_judged_along_its_texts() -> None:
    from shared_models.cards import card_for

    plan = Plan.model_validate(
        {"name": "text", "data": {"name": "shakespeare", "partition": {"kind": "iid"}}, "privacy": {"trust": "none"}}
    )
    names = card_for(plan.data).classes
    of = Subject(plan=plan, setting="simulation", model_digest="0" * 64, best=False, source="server")
    x = torch.randint(1, len(names), (40, 80), generator=torch.Generator().manual_seed(1)).float()
    y = x.long().clone()
    y[:, 40:] = 5  # the second half is right only where the token is 5 too
    y[:10, 79] = 0  # no label
    found = assess(NextIsSame(len(names)), TestData(x, y), of)
    assert found.language is not None
    assert found.accuracy is not None
    assert found.n == 40 * 80 - 10
    assert [place.accuracy.value for place in found.language.places[:5]] == [1.0] * 5
    assert all(place.accuracy.value < 0.2 for place in found.language.places[5:])
    assert (found.language.places[0].first, found.language.places[-1].last) == (1, 80)
    logits = NextIsSame(len(names))(x)[y != 0].double()
    loss = torch.nn.functional.cross_entropy(logits, y[y != 0]).item()
    assert found.loss == pytest.approx(loss)
    assert found.language.perplexity == pytest.approx(np.exp(loss))
    assert {one.token for one in found.language.confused} == {names[5]}
    times = [one.times for one in found.language.confused]
    assert times == sorted(times, reverse=True)
    jsonschema.validate(json.loads(json_text(found)), SCHEMA)
    assert "Next token" in html(found)
    with pytest.raises(UsageError, match="language model"):
        assess(NextIsSame(len(names)), TestData(x, y), of, by="role")
