"""Skellam noise: its table against the distribution, its draws against its moments, its sums against itself."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import ReproducibleNoise, SecretNoise, SkellamTable, skellam_table

FALSE_ALARM = 1e-6
DEVIATIONS = [0.125, 0.5, 1.0, 3.7, 60.0]


def thresholds(table: SkellamTable) -> list[int]:
    return [int(upper) << 64 | int(lower) for upper, lower in zip(table._upper, table._lower, strict=True)]


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_rule_9_the_distance_is_a_bound_and_a_near_one(deviation: float) -> None:
    """Against exp(-v) I_k(v), by mpmath."""
    table = skellam_table(deviation)
    with mpmath.workprec(500):
        v = mpmath.mpf(deviation) ** 2
        drawn = [mpmath.mpf(b - a) / 2**128 for a, b in itertools.pairwise([0, *thresholds(table), 2**128])]
        half = [mpmath.besseli(k, v) * mpmath.exp(-v) for k in range(table.largest + 1)]
        exact = [*half[:0:-1], *half]
        distance = (sum(abs(a - b) for a, b in zip(drawn, exact, strict=True)) + 1 - sum(exact)) / 2
        assert len(drawn) == 2 * table.largest + 1
        assert distance <= table.distance
        assert table.distance <= 4 * len(drawn) * 2.0**-128
    assert thresholds(table) == sorted(thresholds(table))


@pytest.mark.parametrize("deviation", DEVIATIONS)
@pytest.mark.parametrize("make", [lambda: ReproducibleNoise(b"sums"), SecretNoise], ids=["reproducible", "secret"])
def test_distribution(make: type[SecretNoise], deviation: float) -> None:
    """Chi-square against scipy's distribution; false alarm once in a million."""
    n, most, rate = 200_000, max(1, round(3 * deviation)), deviation**2 / 2
    drawn = make().skellam((n,), deviation).clamp(-most, most).numpy()
    exact = stats.skellam.pmf(np.arange(-most, most + 1), rate, rate)
    exact[[0, -1]] += (1 - exact.sum()) / 2
    found, possible = np.bincount(drawn + most, minlength=2 * most + 1), n * exact > 5
    assert stats.chisquare(found[possible], n * exact[possible] / exact[possible].sum()).pvalue > FALSE_ALARM


@pytest.mark.parametrize("deviation", [0.5, 40.0, 1500.0])
def test_moments(deviation: float) -> None:
    """Mean 0, variance v, fourth moment 3 v² + v; false alarm once in a million each."""
    n, v = 200_000, deviation**2
    x = ReproducibleNoise(b"moments").skellam((n,), deviation).double()
    z = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(float(x.mean())) < z * math.sqrt(v / n)
    assert abs(float(x.square().mean()) - v) < z * math.sqrt((2 * v**2 + v) / n)


def test_shares_add_up_to_skellam_noise() -> None:
    """Unlike discrete Gaussians: five shares are one noise of five times the variance, in distribution."""
    noise, n = ReproducibleNoise(b"shares"), 100_000
    total = sum(noise.skellam((n,), 1.5).numpy() for _ in range(5))
    exact = stats.skellam.pmf(np.arange(-9, 10), 5 * 1.125, 5 * 1.125)
    exact[[0, -1]] += (1 - exact.sum()) / 2
    found = np.bincount(np.clip(total, -9, 9) + 9, minlength=19)
    assert stats.chisquare(found, n * exact).pvalue > FALSE_ALARM


@pytest.mark.parametrize("deviation", [0.0, 0.1, -1.0, 70_000.0, math.inf, math.nan])
def test_a_deviation_out_of_range_is_refused(deviation: float) -> None:
    with pytest.raises(ValueError, match="between 2"):
        SecretNoise().skellam((1,), deviation)


def test_the_same_noise_on_every_machine() -> None:
    assert ReproducibleNoise(b"golden").skellam((6,), 1000.0).tolist() == GOLDEN
    assert SecretNoise().skellam((2, 3), 2.0, device=torch.device("cpu")).shape == (2, 3)


GOLDEN = [886, 999, 370, 1031, -669, -738]
