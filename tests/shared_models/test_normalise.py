"""Released means and scales in a training plan: what its network sees, and what the plan says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from security.errors import UsageError
from server.claim import disclosed
from shared_models.cards import NormalisedColumn, card_for
from shared_models.histograms import histograms_of
from shared_models.normalise import constants_of, normalised_plan, normalised_schema
from shared_models.plan import Plan
from shared_models.plan_data import NumericColumn
from shared_models.plan_file import parse_plan, plan_from, write_plan
from shared_models.resolve import resolve
from shared_models.schema_card import NumberColumn, plan_tables, schema_of
from shared_models.summary_statistics import summarised
from shared_models.table_encoding import encode_table
from tests.shared_models.test_histograms import CARD, statistics_plan

PLAN = statistics_plan({"bins": 10})


def training_plan(**tables: Any) -> Plan:
    raw = {"data": {"name": "csv", "path": "x.csv", "card": CARD}, "model": {"name": "mlp"}, **tables}
    return plan_from({"privacy": {"trust": "none"}, **raw}, where="test")


def released(noise: float = 1.0, dose: int = 100) -> dict[str, Any]:
    counts = np.concatenate([[0, 0, 500, 500, 0, 0, 0, 0, 0, 0, 7], [dose] * 10 + [0], [500, 500, 7], [750, 250]])
    found = summarised(histograms_of(PLAN), counts, noise=noise, plan=PLAN.digest(), clients=4)
    return found.to_json()


def test_numbers_are_clipped_to_their_bounds_and_then_normalised() -> None:
    plan = normalised_plan(training_plan(), constants_of(released()), weigh_classes=False)
    card = card_for(plan.data)
    age = card.columns["age"]
    assert isinstance(age, NormalisedColumn)
    assert (age.scale.mean, age.scale.scale) == (30.0, 5.0)  # the middles of two bins
    texts = pd.DataFrame({"age": ["30", "35", "-4", "500", "?"], "dose": ["0"] * 5, "sex": ["f"] * 5}, dtype=str)
    x = encode_table(texts, card.columns, card.missing)
    assert x[:, 0].tolist() == [0.0, 1.0, -6.0, 14.0, 0.0]
    assert x[:, 1].tolist() == [0, 0, 0, 0, 1]
    assert card.form == card_for(training_plan().data).form


def test_the_plan_names_who_was_charged_and_its_claim_says_so() -> None:
    plan = resolve(normalised_plan(training_plan(), constants_of(released()), weigh_classes=False))
    assert plan.data.normalisation is not None
    assert plan.data.normalisation.statistics == PLAN.digest()
    assert resolve(parse_plan(write_plan(plan), where="test")).digest() == plan.digest()
    (remark,) = (one for one in disclosed(plan) if one.code == "normalisation")
    assert PLAN.digest()[:16] in remark.text
    assert "charged there" in remark.text
    assert all(one.code != "normalisation" for one in disclosed(resolve(training_plan())))


def test_other_constants_are_another_plan() -> None:
    found = constants_of(released())
    plans = [
        training_plan(),
        normalised_plan(training_plan(), found, weigh_classes=False),
        normalised_plan(training_plan(), found, weigh_classes=True),
    ]
    assert len({plan.digest() for plan in plans}) == 3


def test_classes_are_weighed_by_their_released_counts() -> None:
    plan = normalised_plan(training_plan(), constants_of(released()), weigh_classes=True)
    assert plan.training.class_weights == pytest.approx((1000 / 1500, 1000 / 500), rel=1e-5)
    other = training_plan(data={"name": "csv", "path": "x", "card": {**CARD, "classes": ["yes", "no"]}})
    with pytest.raises(UsageError, match="counted no such classes"):
        normalised_plan(other, constants_of(released()), weigh_classes=True)
    with pytest.raises(UsageError, match="noise drowns"):
        normalised_plan(training_plan(), constants_of(released(noise=400.0)), weigh_classes=True)


def test_what_noise_drowns_stays_as_the_bounds_say() -> None:
    found = constants_of(released(noise=3.0, dose=0))
    assert found.drowned == ("dose",)
    card = card_for(normalised_plan(training_plan(), found, weigh_classes=False).data)
    assert type(card.columns["dose"]) is NumericColumn
    with pytest.raises(UsageError, match="normalise no number"):
        normalised_plan(training_plan(), constants_of(released(noise=1e6)), weigh_classes=False)


def test_a_schema_holds_them_too_and_a_plan_that_names_it_is_the_same() -> None:
    found = constants_of(released())
    schema = normalised_schema(schema_of(training_plan().data), found)
    age = schema.columns["age"]
    assert isinstance(age, NumberColumn)
    assert (age.mean, age.scale, schema.statistics) == (30.0, 5.0, PLAN.digest())
    plan = normalised_plan(training_plan(), found, weigh_classes=False)
    assert plan_tables(schema)["normalisation"] == plan.data.normalisation


@pytest.mark.parametrize(
    ("normalisation", "message"),
    [
        ({"statistics": "0" * 64, "columns": {"sex": {"mean": 0.0, "scale": 1.0}}}, r"columns\.sex: .*no number"),
        (
            {"statistics": "0" * 64, "columns": {"ages": {"mean": 0.0, "scale": 1.0}}},
            r"columns\.ages: did you mean age",
        ),
        ({"statistics": "0" * 63, "columns": {}}, r"normalisation\.statistics"),
        ({"statistics": "0" * 64, "columns": {"age": {"mean": 0.0, "scale": 0.0}}}, r"scale = 0\.0"),
        ({"columns": {}}, r"normalisation\.statistics: missing"),
    ],
)
def test_constants_that_belong_nowhere_are_refused(normalisation: dict[str, Any], message: str) -> None:
    data = {"name": "csv", "path": "x.csv", "card": CARD, "normalisation": normalisation}
    with pytest.raises(UsageError, match=message):
        resolve(training_plan(data=data))


@pytest.mark.parametrize("wrong", [{}, {"columns": [{}]}, {"columns": 3}, {"columns": [], "noise": 1.0}])
def test_what_are_no_statistics_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="these are no statistics"):
        constants_of(wrong)
