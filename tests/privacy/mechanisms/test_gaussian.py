"""The plain Gaussian mechanism, against its closed form."""

import math

import pytest
from scipy.stats import norm

from privacy.accountant import delta_for, epsilon
from privacy.mechanisms import DpSgd, Gaussian


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (5.0, 20), (0.3, 1), (100.0, 3)])
@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_delta_is_that_of_balle_and_wang(noise: float, releases: int, eps: float) -> None:
    mu = math.sqrt(releases) / noise
    exact = float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)))
    assert exact <= delta_for([Gaussian(noise_multiplier=noise, releases=releases)], eps) <= exact * 1.001 + 1e-15


def test_it_is_the_full_batch_of_dp_sgd() -> None:
    """To the last bits, however it is written."""
    gaussian = epsilon([Gaussian(noise_multiplier=2.0, releases=7)], 1e-5)
    assert gaussian == epsilon([DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=7)], 1e-5)
    assert gaussian == epsilon({Gaussian(noise_multiplier=2.0): 7}, 1e-5)


def test_described_for_a_person() -> None:
    assert Gaussian(noise_multiplier=2.5).describe() == "Gaussian: 1 vector, noise multiplier 2.5"
    assert Gaussian(noise_multiplier=2.5, releases=3).describe() == "Gaussian: 3 vectors, noise multiplier 2.5"
