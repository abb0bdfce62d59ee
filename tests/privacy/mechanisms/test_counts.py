"""Rule 10: released counts have their joint sensitivity (correct and total: sqrt 2)."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from privacy.accountant import delta_for, epsilon
from privacy.mechanisms import Gaussian, NoisyCounts


def test_correct_and_total_have_the_sensitivity_sqrt_2() -> None:
    counts = NoisyCounts(noise=10.0)
    assert counts.counts == 2
    assert counts.sensitivity == math.sqrt(2)
    assert epsilon([counts], 1e-5) == epsilon([Gaussian(noise_multiplier=10 / math.sqrt(2))], 1e-5)


def test_a_person_moves_each_count_by_all_of_their_records() -> None:
    person = NoisyCounts(noise=10.0, counts=3, records_per_unit=4)
    assert person.sensitivity == 4 * math.sqrt(3)
    assert epsilon([person], 1e-5) == epsilon([Gaussian(noise_multiplier=10 / (4 * math.sqrt(3)))], 1e-5)


@pytest.mark.parametrize("noise", [0.2, 0.7, 3.0, 12.0])
@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0])
def test_rounding_costs_nothing(noise: float, eps: float) -> None:
    """The divergence of the rounded count, summed over all whole numbers, both directions, is never above the price."""
    x = np.arange(-300, 301)
    without = norm.cdf((x + 0.5) / noise) - norm.cdf((x - 0.5) / noise)
    with_one = norm.cdf((x - 1 + 0.5) / noise) - norm.cdf((x - 1 - 0.5) / noise)
    worst = max(
        float(np.maximum(with_one - math.exp(eps) * without, 0).sum()),
        float(np.maximum(without - math.exp(eps) * with_one, 0).sum()),
    )
    assert worst <= delta_for([NoisyCounts(noise=noise, counts=1)], eps) + 1e-12


def test_a_rounded_count_is_a_count_plus_rounded_noise() -> None:
    """The identity of the proof: round(x + g) = x + round(g) for whole x; ties have probability 0."""
    rng = np.random.default_rng(5)
    x, g = rng.integers(0, 10_000, 1000), 3 * rng.standard_normal(1000)
    assert (np.rint(x + g) == x + np.rint(g)).all()


def test_described_for_a_person() -> None:
    assert NoisyCounts(noise=3.0).describe() == "noisy counts: 2 counts, noise 3"
    several = NoisyCounts(noise=3.0, counts=1, records_per_unit=5)
    assert several.describe() == "noisy counts: 1 count, noise 3, at most 5 records a unit"
