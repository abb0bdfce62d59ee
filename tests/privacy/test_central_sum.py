"""The sum of a trusted server: one client moves it by the clipping norm at most, noise is there, and it is whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from scipy.stats import chi2

from privacy.central_sum import ClippedSum, IndependentNoise, mean_of, on_grid
from privacy.noise import ReproducibleNoise, SecretNoise
from privacy.release_grid import ReleaseGrid

SIZE = 40
GRID = ReleaseGrid.of(clipping_norm=0.5, noise_multiplier=1.5, dimensions=SIZE)
FALSE_ALARM = 1e-9

ANYTHING = st_numpy.arrays(
    np.float32, SIZE, elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)
)


def length(whole: np.ndarray) -> int:
    return sum(int(value) ** 2 for value in whole)


def some(seed: int, size: float = 1.0) -> np.ndarray:
    return (size * np.random.default_rng(seed).standard_normal(SIZE)).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_rule_9_whatever_a_client_sends_moves_the_sum_by_the_clipping_norm_at_most(update: np.ndarray) -> None:
    others = ClippedSum(GRID, SIZE)
    for seed in range(3):
        others.add(some(seed))
    before = others.total
    others.add(update)
    assert length(others.total - before) <= GRID.steps**2


@pytest.mark.parametrize("norm", [1e-9, 0.5, 1e9])
@pytest.mark.parametrize("size", [1e-45, 1e-3, 1.0, 3e38])
def test_a_huge_update_is_as_long_as_the_clipping_norm_and_a_small_one_stays(norm: float, size: float) -> None:
    grid = ReleaseGrid.of(clipping_norm=norm, noise_multiplier=1.0, dimensions=SIZE)
    update = np.full(SIZE, size, np.float32)
    found = on_grid(update, grid)
    assert length(found) <= grid.steps**2
    whole = float(np.linalg.norm(update.astype(np.float64)))
    assert grid.step * math.sqrt(length(found)) == pytest.approx(min(whole, norm), rel=1e-3, abs=7 * grid.step)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rule_5_an_update_that_is_not_finite_counts_as_zeros(value: float) -> None:
    update = some(1)
    update[7] = value
    assert not on_grid(update, GRID).any()


def test_the_sum_is_the_same_in_any_order_and_takes_the_room_of_one() -> None:
    updates = [some(seed, 0.01) for seed in range(20)]
    one, other = ClippedSum(GRID, SIZE), ClippedSum(GRID, SIZE)
    for update in updates:
        one.add(update)
    for update in reversed(updates):
        other.add(update)
    assert np.array_equal(one.total, other.total)
    assert vars(one).keys() == {"_grid", "_total"}


def test_updates_within_the_norm_are_added_as_they_are() -> None:
    updates = [some(seed, 0.01) for seed in range(10)]
    found = ClippedSum(GRID, SIZE)
    for update in updates:
        found.add(update)
    mean = mean_of(found.total, GRID, 10)
    assert np.allclose(mean, np.mean(updates, axis=0), atol=GRID.step)


def test_the_sum_is_divided_by_what_is_expected_not_by_who_came() -> None:
    found = ClippedSum(GRID, SIZE)
    found.add(some(1, 0.01))
    assert np.array_equal(mean_of(found.total, GRID, 8.0), (mean_of(found.total, GRID, 4.0) / 2).astype(np.float32))


@pytest.mark.parametrize("expected", [0.0, -1.0, math.nan])
def test_nothing_is_divided_by_nothing(expected: float) -> None:
    with pytest.raises(ValueError, match="expected number of updates above 0"):
        mean_of(np.zeros(SIZE, np.int64), GRID, expected)


def test_an_update_of_another_length_is_none() -> None:
    with pytest.raises(ValueError, match="is none of"):
        ClippedSum(GRID, SIZE).add(np.zeros(SIZE + 1, np.float32))


def test_the_noise_has_the_plans_deviation() -> None:
    """Sum of squares over variance: chi squared with n degrees of freedom, two-sided at the stated false-alarm rate."""
    n = 40_000
    zeros = np.zeros(n, np.int64)
    noise = IndependentNoise(GRID, ReproducibleNoise(b"test")).noisy(zeros)
    found = float((noise.astype(np.float64) ** 2).sum()) / (GRID.noise_scale**2 + 1 / 12)
    low, high = chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], n)
    assert low < found < high
    assert noise.dtype == np.int64


def test_each_release_has_fresh_noise() -> None:
    zeros = np.zeros(SIZE, np.int64)
    noise = IndependentNoise(GRID, SecretNoise())
    assert not np.array_equal(noise.noisy(zeros), noise.noisy(zeros))
