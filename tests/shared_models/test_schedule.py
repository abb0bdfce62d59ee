"""The learning rate over the rounds: a public function of the plan."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.plan import Plan
from shared_models.schedule import learning_rate


def plan_of(rounds: int, rate: float = 0.8, **schedule: Any) -> Plan:
    return Plan.model_validate(
        {"training": {"learning_rate": rate, "schedule": schedule}, "federation": {"rounds": rounds}}
    )


def rates(plan: Plan) -> list[float]:
    return [learning_rate(plan, number) for number in range(1, plan.federation.rounds + 1)]


def test_a_constant_rate_stays() -> None:
    assert rates(plan_of(5, kind="constant")) == [0.8] * 5


def test_a_warm_up_rises_evenly_and_the_round_after_it_has_the_whole_rate() -> None:
    found = rates(plan_of(6, kind="constant", warmup_rounds=3))
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_steps_multiply_the_rate_every_so_many_rounds_after_the_warm_up() -> None:
    assert rates(plan_of(7, kind="step", every=3, factor=0.5)) == [0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2]
    found = rates(plan_of(7, kind="step", every=2, factor=0.1, warmup_rounds=1))
    assert found == pytest.approx([0.4, 0.8, 0.8, 0.08, 0.08, 0.008, 0.008])


def test_the_cosine_falls_from_the_whole_rate_towards_its_last_part() -> None:
    found = rates(plan_of(4, kind="cosine"))
    half = [(1 + math.cos(math.pi * part)) / 2 for part in (0, 0.25, 0.5, 0.75)]
    assert found == pytest.approx([0.8 * value for value in half])
    low = rates(plan_of(4, kind="cosine", final_fraction=0.5))
    assert low == pytest.approx([0.8 * (0.5 + 0.5 * value) for value in half])
    late = rates(plan_of(6, kind="cosine", warmup_rounds=2))
    assert late == pytest.approx([0.8 / 3, 1.6 / 3, *found])


def test_no_round_of_a_cosine_is_wasted_on_a_rate_of_zero() -> None:
    # A round at rate zero would spend privacy and change nothing, so the end is what the fall aims at.
    assert rates(plan_of(1, kind="cosine")) == [0.8]
    last = rates(plan_of(10, kind="cosine", final_fraction=0.1))[-1]
    assert 0.08 < last < 0.11


def test_a_final_fraction_of_one_is_a_constant_rate() -> None:
    assert rates(plan_of(5, kind="cosine", final_fraction=1.0)) == pytest.approx([0.8] * 5)


schedules = st.one_of(
    st.fixed_dictionaries({"kind": st.just("constant")}),
    st.fixed_dictionaries({"kind": st.just("cosine"), "final_fraction": st.floats(0, 1)}),
    st.fixed_dictionaries(
        {"kind": st.just("step"), "every": st.integers(1, 5), "factor": st.floats(0.01, 1)},
    ),
)


@settings(deadline=None)
@given(schedules, st.integers(1, 30), st.integers(0, 40))
def test_the_rate_rises_in_the_warm_up_and_falls_after_it(schedule: dict[str, Any], rounds: int, warmup: int) -> None:
    found = rates(plan_of(rounds, **schedule, warmup_rounds=warmup))
    assert all(0 < rate <= 0.8 * (1 + 1e-12) for rate in found)
    rising, falling = found[: warmup + 1], found[warmup:]
    assert all(before < after for before, after in itertools.pairwise(rising))
    assert all(before >= after for before, after in itertools.pairwise(falling))
    if len(found) > warmup:
        assert found[warmup] == 0.8


@settings(deadline=None)
@given(schedules)
def test_the_rate_depends_on_the_round_alone(schedule: dict[str, Any]) -> None:
    plan = plan_of(9, **schedule)
    assert rates(plan) == [learning_rate(plan, number) for number in reversed(range(1, 10))][::-1]
