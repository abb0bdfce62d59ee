"""Two worlds told apart by one figure."""

from __future__ import annotations

import numpy as np
import pytest

from simulations.attacks.side_channels.distinguish import ALPHA, clopper_pearson, told_apart


def normal(n: int, mean: float, seed: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def test_worlds_that_are_apart_are_told_apart_whichever_is_slower() -> None:
    slow, fast = normal(100, 20.0, 0), normal(100, 0.0, 1)
    for one, other in ((slow, fast), (fast, slow)):
        found = told_apart(one, other)
        assert (found.auc, found.accuracy, found.high, found.trials) == (1.0, 1.0, 1.0, 100)
        assert found.tells


def test_of_overlapping_normals_it_finds_what_can_be_found() -> None:
    """Two deviations apart: the best threshold is right in 84.1 % of trials, the area is 0.921. With 10,000 trials of
    each either is off by 0.02 with probability below 1e-6."""
    found = told_apart(normal(10_000, 2.0, 2), normal(10_000, 0.0, 3))
    assert found.accuracy == pytest.approx(0.8413, abs=0.02)
    assert found.auc == pytest.approx(0.9214, abs=0.02)
    assert found.low < 0.8413 < found.high


def test_one_world_is_rarely_told_from_itself() -> None:
    """The bound is wrong on this side in 2.5 % of studies: of 400, 26 or more with probability below 1e-5."""
    wrongly = sum(told_apart(normal(60, 0.0, 2 * i), normal(60, 0.0, 2 * i + 1)).tells for i in range(400))
    assert wrongly < 26


def test_ties_tell_nothing() -> None:
    found = told_apart(np.ones(50), np.ones(50))
    assert (found.auc, found.accuracy) == (0.5, 0.5)
    assert not found.tells


def test_the_threshold_is_not_chosen_on_what_is_counted() -> None:
    """Where only the first half is apart, the second tells nothing."""
    one, other = np.zeros(200), np.zeros(200)
    one[::2] = 1.0
    assert told_apart(one, other).accuracy == 0.5


def test_intervals_are_clopper_and_pearsons() -> None:
    low, high = clopper_pearson(0, 30)
    assert (low, high) == (0.0, pytest.approx(1 - (ALPHA / 2) ** (1 / 30)))
    assert clopper_pearson(30, 30) == (pytest.approx((ALPHA / 2) ** (1 / 30)), 1.0)


@pytest.mark.parametrize(("one", "other"), [(3, 3), (10, 9)])
def test_too_few_trials_or_not_as_many_are_refused(one: int, other: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        told_apart(np.zeros(one), np.zeros(other))
