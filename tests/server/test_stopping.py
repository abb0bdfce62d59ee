"""When a run ends early, and which model was the best."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.stopping import Progress
from shared_models.plan_federation import EvaluationPlan


def plan(**keys: Any) -> EvaluationPlan:
    return EvaluationPlan(**keys)


def after(values: list[float | None], **keys: Any) -> Progress:
    progress = Progress()
    for number, value in enumerate(values, start=1):
        progress = progress.after(plan(**keys), number, value)
    return progress


def test_nothing_stops_a_run_that_asked_for_nothing() -> None:
    assert Progress().stop(plan()) is None
    assert after([0.5, 0.1, 0.0, 0.0, None]).stop(plan()) is None


@pytest.mark.parametrize(
    ("metric", "values", "target", "stops"),
    [
        ("accuracy", [0.5, 0.8], 0.8, True),
        ("accuracy", [0.5, 0.79], 0.8, False),
        ("accuracy", [0.9, 0.1], 0.8, True),
        ("loss", [1.0, 0.2], 0.2, True),
        ("loss", [1.0, 0.21], 0.2, False),
        ("loss", [0.1, 3.0], 0.2, True),
        ("auc", [None], 0.5, False),
        ("loss", [math.nan], 0.5, False),
        ("accuracy", [], 0.0, False),
        ("accuracy", [0.0], 0.0, True),
    ],
)
def test_a_target_is_reached_in_the_direction_of_its_metric(
    metric: str, values: list[float | None], target: float, stops: bool
) -> None:
    keys = {"metric": metric, "target": target}
    assert (after(values, **keys).stop(plan(**keys)) == "target") == stops


@pytest.mark.parametrize(
    ("metric", "values", "patience", "stops"),
    [
        ("accuracy", [0.5, 0.4, 0.4], 2, True),
        ("accuracy", [0.5, 0.4, 0.6, 0.5], 2, False),
        ("accuracy", [0.5, 0.5, 0.5], 2, True),  # as good is not better
        ("loss", [0.5, 0.4, 0.3], 1, False),
        ("loss", [0.5, 0.6], 1, True),
        ("auc", [None, None, None], 3, True),
        ("auc", [None, None, 0.1], 3, False),
        ("loss", [0.5, math.nan, math.inf], 2, True),
        ("loss", [], 1, False),
    ],
)
def test_a_plateau_is_so_many_evaluations_without_a_better_metric(
    metric: str, values: list[float | None], patience: int, stops: bool
) -> None:
    keys = {"metric": metric, "patience": patience}
    assert (after(values, **keys).stop(plan(**keys)) == "plateau") == stops


def test_a_target_goes_before_a_plateau() -> None:
    keys = {"metric": "accuracy", "target": 0.5, "patience": 1}
    assert after([0.6, 0.1], **keys).stop(plan(**keys)) == "target"


def test_a_first_value_that_is_no_number_does_not_hide_the_better_ones() -> None:
    assert after([math.nan, 0.3, math.inf], metric="accuracy") == Progress(best=0.3, best_round=2, stale=1)


@given(st.lists(st.none() | st.floats(), max_size=20), st.sampled_from(["accuracy", "loss"]))
def test_the_best_is_the_first_of_the_best_numbers(values: list[float | None], metric: str) -> None:
    numbers = [value for value in values if value is not None and math.isfinite(value)]
    progress = after(values, metric=metric)
    if not numbers:
        assert progress == Progress(best=None, best_round=0, stale=len(values))
        return
    best = max(numbers) if metric == "accuracy" else min(numbers)
    first = next(i for i, value in enumerate(values, start=1) if value == best)
    assert progress == Progress(best=best, best_round=first, stale=len(values) - first)
