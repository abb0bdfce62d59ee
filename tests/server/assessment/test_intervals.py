"""Intervals of proportions and of gaps: against a second library, and how often they hold, exactly."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from server.assessment.facts import LEAST
from server.assessment.intervals import difference, largest_difference, share


@pytest.mark.parametrize(("right", "of"), [(0, 1), (1, 1), (0, 20), (3, 20), (20, 20), (499, 1000)])
def test_a_share_has_wilsons_interval(right: int, of: int) -> None:
    expected = binomtest(right, of).proportion_ci(0.95, method="wilson")
    found = share(right, of)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


@pytest.mark.parametrize(("right", "of"), [(0, 0), (2, 1), (-1, 4)])
def test_no_share_of_nothing(right: int, of: int) -> None:
    with pytest.raises(ValueError, match="no proportion"):
        share(right, of)


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [  # Newcombe 1998, Stat. Med. 17, 873-890, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_a_difference_as_newcombe_published_it(
    one: tuple[int, int], other: tuple[int, int], low: float, high: float
) -> None:
    assert difference(one, other) == pytest.approx((low, high), abs=5e-5)


@cache
def _of_pairs(n: int, m: int) -> dict[tuple[int, int], tuple[float, float]]:
    return {(a, b): difference((a, n), (b, m)) for a in range(n + 1) for b in range(m + 1)}


def coverage_of_a_difference(n: int, m: int, p: float, q: float) -> float:
    """The chance that the interval holds the true difference: a sum over everything that can be drawn."""
    found = _of_pairs(n, m)
    chance = np.outer(binom.pmf(range(n + 1), n, p), binom.pmf(range(m + 1), m, q))
    return sum(chance[a, b] for (a, b), (low, high) in found.items() if low - 1e-12 <= p - q <= high + 1e-12)


def test_a_differences_interval_holds_as_often_as_it_says() -> None:
    """Exact, so without a false alarm: over 36 true pairs the mean is 95 %, and no pair falls below 92.5 %."""
    rates = (0.05, 0.2, 0.4, 0.6, 0.8, 0.95)
    for n, m in ((20, 20), (20, 60)):
        found = [coverage_of_a_difference(n, m, p, q) for p, q in itertools.product(rates, rates)]
        assert np.mean(found) == pytest.approx(0.955, abs=0.01)
        assert min(found) > 0.925


@cache
def _of_threes(n: int) -> dict[tuple[int, int, int], tuple[float, float]]:
    found = {}
    for hits in itertools.combinations_with_replacement(range(n + 1), 3):
        largest = largest_difference({str(index): (hit, n) for index, hit in enumerate(hits)})
        assert largest is not None
        found[hits] = (largest.low, largest.high)
    return found


@pytest.mark.parametrize("rates", [(0.5, 0.5, 0.5), (0.9, 0.9, 0.9), (0.2, 0.5, 0.5), (0.1, 0.5, 0.9), (0.7, 0.8, 0.9)])
def test_the_interval_of_a_gap_that_was_picked_holds_at_least_as_often_as_it_says(rates: tuple[float, ...]) -> None:
    """Three groups of as few as are ever compared, exactly. A plain interval of the pair that is furthest apart would
    not hold."""
    n, true = LEAST, max(rates) - min(rates)
    found = _of_threes(n)
    chances = [binom.pmf(range(n + 1), n, rate) for rate in rates]
    held = plain = 0.0
    for hits in itertools.product(range(n + 1), repeat=3):
        chance = np.prod([chances[index][hit] for index, hit in enumerate(hits)])
        low, high = found[tuple(sorted(hits))]  # type: ignore[index]
        held += chance * (low - 1e-12 <= true <= high + 1e-12)
        naive = _of_pairs(n, n)[max(hits), min(hits)]
        plain += chance * (naive[0] - 1e-12 <= true <= naive[1] + 1e-12)
    assert held >= 0.95
    if rates == (0.5, 0.5, 0.5):
        assert plain < 0.93


def test_of_two_groups_the_gap_is_their_difference() -> None:
    found = largest_difference({"a": (9, 10), "b": (3, 10)})
    assert found is not None
    assert (found.highest, found.lowest) == ("a", "b")
    assert (found.value, found.low, found.high) == pytest.approx((0.6, *difference((9, 10), (3, 10))))


def test_a_gap_may_be_none_and_is_never_negative() -> None:
    found = largest_difference({"a": (5, 10), "b": (5, 10), "c": (5, 10)})
    assert found is not None
    assert (found.value, found.low) == (0.0, 0.0)
    assert 0 < found.high <= 1
    assert largest_difference({"a": (5, 10)}) is None
    assert largest_difference({}) is None
