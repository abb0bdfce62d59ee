"""The norm bound: updates are shortened to one length, and averaged."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from security.errors import UsageError
from server.norm_bound import NormBound
from server.strategies import make_strategy
from shared_models.protocol import ARRAYS, METRICS, WEIGHT
from tests.server.conftest import FakeGrid, learns, make_plan

START = {"w": np.array([[1.0, -2.0]], np.float32), "b": np.array([0.5], np.float32)}


def record(model: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(value) for name, value in model.items()})


def stepped(updates: list[list[float]], weights: list[int], norm: float = 0.0) -> np.ndarray:
    """The next model of updates of three values, in a row."""
    strategy = NormBound(norm=norm, weighted_by_key=WEIGHT, min_train_nodes=1, min_available_nodes=1)
    grid = FakeGrid([f"site-{n}" for n in range(len(updates))], learns)
    messages = list(strategy.configure_train(1, record(START), ConfigRecord(), grid))
    replies = []
    for message, update, weight in zip(messages, updates, weights, strict=True):
        moved = {
            "w": START["w"] + np.array([update[:2]], np.float32),
            "b": START["b"] + np.array(update[2:], np.float32),
        }
        replies.append(
            Message(RecordDict({ARRAYS: record(moved), METRICS: MetricRecord({WEIGHT: weight})}), reply_to=message)
        )
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return np.concatenate([arrays["w"].numpy().ravel(), arrays["b"].numpy()])


@given(
    st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 3), min_size=1, max_size=7),
    st.floats(0, 50),
    st.data(),
)
def test_it_is_the_mean_of_shortened_updates(given: list[tuple[float, ...]], norm: float, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(given), max_size=len(given)))
    updates = np.array(given)
    norms = np.linalg.norm(updates, axis=1)
    bound = norm or float(np.median(norms))
    short = [u * min(1, bound / n) if n else u for u, n in zip(updates, norms, strict=True)]
    expected = np.array([1.0, -2.0, 0.5]) + np.average(short, axis=0, weights=weights)
    found = stepped([list(one) for one in given], weights, norm)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)  # models are float32 around updates of a hundred


@pytest.mark.parametrize("length", [1e2, 1e10, 3e38])
def test_one_of_three_moves_the_model_no_farther_than_an_honest_one(length: float) -> None:
    """By default the bound is the median norm, here 5; the longest is shortened to it, however long it is."""
    found = stepped([[3.0, 4.0, 0.0], [0.0, 0.0, 4.0], [length, 0.0, 0.0]], [1, 1, 1])
    expected = np.array([1 + (3 + 5) / 3, -2 + 4 / 3, 0.5 + 4 / 3])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_updates_of_nothing_leave_the_model() -> None:
    assert stepped([[0.0] * 3] * 3, [1, 2, 3]).tolist() == [1.0, -2.0, 0.5]


def test_it_is_a_strategy_of_plans() -> None:
    made = make_strategy(make_plan({"federation": {"strategy": "normbound", "strategy_options": {"norm": 2.5}}}))
    assert isinstance(made.flower, NormBound)
    assert made.flower.norm == 2.5
    assert made.every_reply
    assert made.memory() == {}  # nothing is kept between rounds: a checkpoint holds all of it
    for norm, words in ((-1.0, "above 0"), ("long", "give a float")):
        with pytest.raises(UsageError, match=words):
            make_strategy(make_plan({"federation": {"strategy": "normbound", "strategy_options": {"norm": norm}}}))


def test_a_bound_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        NormBound(norm=math.nan)
