"""Epsilon of secure sums, computed anew from the papers' formulae: nothing here is taken from `privacy`'s own pricing.

Kairouz, Liu & Steinke 2021 (arXiv 2102.06387), proposition 14: a sum of n discrete Gaussian shares. Agarwal, Kairouz &
Liu 2021 (arXiv 2110.04995), theorem 3.5 and corollary 4.1: a sum of n Skellam shares. Canonne, Kamath & Steinke 2020
(arXiv 2004.00010), proposition 12: from a Renyi divergence to epsilon.
"""

import math
from collections.abc import Callable

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import DiscreteGaussianSum, Gaussian, SkellamSum
from privacy.sum_grid import SumGrid, SumNoise

DELTA = 1e-5
ORDERS = [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 28, 32, 48, 64, 128, 256, 512, 1024]

# noise multiplier, honest, dimension, rounds
CASES = [(1.0, 5, 25_906, 20), (2.8537, 5, 25_906, 20), (12.4, 10, 6018, 80), (0.8, 50, 10**6, 1), (6.0, 2, 160, 200)]


def best(divergence: Callable[[int], float], rounds: int) -> float:
    """Over orders, delta as it is: (alpha, rounds D)-RDP is (epsilon, delta)-DP."""
    return min(
        rounds * divergence(a) + math.log((a - 1) / a) - (math.log(DELTA) + math.log(a)) / (a - 1) for a in ORDERS
    )


def by_the_papers(noise: SumNoise, *, share: float, n: int, d: int, l2: float, rounds: int) -> float:
    l1 = min(math.sqrt(d) * l2, l2**2)  # of whole numbers
    if noise == "discrete-gaussian":
        tau = 10 * sum(math.exp(-2 * math.pi**2 * share**2 * k / (k + 1)) for k in range(1, n))
        # Concentrated: (1/2) e^2 alpha at every alpha, with e the smallest of what the proposition's parts give.
        wide = l2**2 / (n * share**2) + 2 * l1 * tau / (share * math.sqrt(n)) + tau**2 * d
        norm = (l2 / (share * math.sqrt(n)) + tau * math.sqrt(d)) ** 2
        return best(lambda a: min(a * l2**2 / (2 * n * share**2) + tau * d, a / 2 * wide, a / 2 * norm), rounds)
    mu = n * share**2
    return best(
        lambda a: a * l2**2 / (2 * mu) + min(((2 * a - 1) * l2**2 + 6 * l1) / (4 * mu**2), 3 * l1 / (2 * mu)), rounds
    )


@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize(("z", "honest", "dimension", "rounds"), CASES)
def test_epsilon_is_that_of_the_papers(noise: SumNoise, z: float, honest: int, dimension: int, rounds: int) -> None:
    grid = SumGrid.of(clipping_norm=0.7, noise_multiplier=z, honest=honest, dimension=dimension, noise=noise)
    kind = SkellamSum if noise == "skellam" else DiscreteGaussianSum
    release = kind(noise_share=grid.noise_share, honest=honest, l2_sensitivity=float(grid.steps), dimension=dimension)
    spent = epsilon({release: rounds}, DELTA)
    independent = by_the_papers(
        noise,
        share=z * grid.steps / math.sqrt(honest),
        n=honest,
        d=dimension,
        l2=float(grid.steps),
        rounds=rounds,
    )
    # The accountant tries broken orders, too, and may find a little less.
    assert spent.epsilon <= independent * (1 + 1e-6)
    at = {o: release.renyi([float(o)])[0] for o in ORDERS}
    assert best(lambda a: at[a], rounds) == pytest.approx(independent, rel=1e-6)
    assert spent.epsilon == pytest.approx(independent, rel=0.02)


@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
def test_the_figures_of_a_known_example(noise: SumNoise) -> None:
    """Eighty sums with noise 12.4: 3.26 by RDP. With half of it honest, 4.48 were it a Gaussian's; by RDP, more."""
    kind = SkellamSum if noise == "skellam" else DiscreteGaussianSum
    grid = SumGrid.of(clipping_norm=1.0, noise_multiplier=12.4, honest=10, dimension=6018, noise=noise)
    ten, five = (
        kind(noise_share=grid.noise_share, honest=honest, l2_sensitivity=float(grid.steps), dimension=6018)
        for honest in (10, 5)
    )
    assert epsilon({ten: 80}, DELTA).epsilon == pytest.approx(3.26, abs=5e-3)
    gaussian = epsilon([Gaussian(noise_multiplier=12.4 / math.sqrt(2), releases=80)], DELTA)
    assert gaussian.epsilon == pytest.approx(4.48, abs=5e-3)
    # Skellam's bound is for whole orders alone.
    loose = 1e-2 if noise == "skellam" else 1e-4
    assert epsilon({five: 80}, DELTA).epsilon == pytest.approx(gaussian.rdp_epsilon, rel=loose)


@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
@pytest.mark.parametrize("z", [0.5, 1.0, 4.0, 20.0])
def test_the_grid_costs_nothing_beside_gaussian_noise(noise: SumNoise, z: float) -> None:
    """RDP of a Gaussian of the same multiplier is a lower bound: alpha / 2 z^2."""
    kind = SkellamSum if noise == "skellam" else DiscreteGaussianSum
    for dimension in (160, 10**6):
        grid = SumGrid.of(clipping_norm=1.0, noise_multiplier=z, honest=5, dimension=dimension, noise=noise)
        release = kind(noise_share=grid.noise_share, honest=5, l2_sensitivity=float(grid.steps), dimension=dimension)
        found = release.renyi([8.0])[0]
        assert 8 / (2 * z**2) * (1 - 1e-12) <= found <= 8 / (2 * z**2) * 1.005
