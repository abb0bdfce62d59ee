"""Sums of discrete noise, against the divergences of the distributions themselves (rules 2, 4 and 9)."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ive, logsumexp

from privacy.accountant import RDP_ACCOUNTANT, epsilon
from privacy.mechanisms import DiscreteGaussianSum, Gaussian, Release, SkellamSum, rounded_sensitivity

ORDERS = [2.0, 3.0, 8.0, 16.0]
WIDTH = 400

LogPmf = NDArray[np.float64]


def discrete_gaussian_sum(share: float, honest: int) -> LogPmf:
    """Log probabilities of -WIDTH..WIDTH: convolved without a Fourier transform, so the tails are right."""
    x = np.arange(-WIDTH, WIDTH + 1)
    one = np.exp(-(x**2) / (2 * share**2))
    one /= one.sum()
    total = one
    for _ in range(honest - 1):
        total = np.convolve(total, one)[WIDTH:-WIDTH]
    with np.errstate(divide="ignore"):
        return np.log(total)


def skellam(share: float, honest: int) -> LogPmf:
    """Of variance honest x share^2: exp(-v) I_x(v)."""
    with np.errstate(divide="ignore"):
        return np.log(ive(np.abs(np.arange(-WIDTH, WIDTH + 1)), honest * share**2))


def divergence(p: LogPmf, shift: int, order: float) -> float:
    """Renyi divergence between the noise and the noise moved by `shift`."""
    if shift == 0:
        return 0.0
    kept = slice(shift, -shift)
    one, other = p[kept], np.roll(p, shift)[kept]
    usable = np.isfinite(one) & np.isfinite(other)
    return float(logsumexp(order * one[usable] + (1 - order) * other[usable])) / (order - 1)


@pytest.mark.parametrize(("share", "honest"), [(0.5, 2), (0.6, 10), (1.0, 3), (2.0, 5), (4.0, 1)])
@pytest.mark.parametrize("moved", [(1,), (3,), (1, 1), (2, 1, 1)])
def test_the_bound_for_discrete_gaussians_holds_and_is_close(share: float, honest: int, moved: tuple[int, ...]) -> None:
    noise = discrete_gaussian_sum(share, honest)
    release = DiscreteGaussianSum(
        noise_share=share, honest=honest, l2_sensitivity=math.hypot(*moved), dimension=len(moved)
    )
    for order, bound in zip(ORDERS, release.renyi(ORDERS), strict=True):
        exact = sum(divergence(noise, shift, order) for shift in moved)
        assert exact <= bound * (1 + 1e-9)
        if share >= 1:
            assert bound <= exact * 1.02


@pytest.mark.parametrize(("share", "honest"), [(1.0, 2), (1.0, 10), (2.0, 3), (3.0, 6)])
@pytest.mark.parametrize("moved", [(1,), (3,), (1, 1), (2, 1, 1)])
def test_the_bound_for_skellam_noise_holds(share: float, honest: int, moved: tuple[int, ...]) -> None:
    noise = skellam(share, honest)
    release = SkellamSum(noise_share=share, honest=honest, l2_sensitivity=math.hypot(*moved), dimension=len(moved))
    for order, bound in zip(ORDERS, release.renyi(ORDERS), strict=True):
        exact = sum(divergence(noise, shift, order) for shift in moved)
        assert exact <= bound
        if share * math.sqrt(honest) > 7 and order <= 8:
            assert bound <= exact * 1.1


def test_the_correction_for_a_sum_of_discrete_gaussians() -> None:
    """Kairouz, Liu & Steinke 2021, proposition 14: tau = 10 sum_{k=1}^{n-1} exp(-2 pi^2 sigma^2 k / (k + 1))."""
    one = DiscreteGaussianSum(noise_share=0.7, honest=1, l2_sensitivity=1.0, dimension=1)
    three = DiscreteGaussianSum(noise_share=0.7, honest=3, l2_sensitivity=1.0, dimension=1)
    assert one.tau == 0
    expected = 10 * (math.exp(-2 * math.pi**2 * 0.49 / 2) + math.exp(-2 * math.pi**2 * 0.49 * 2 / 3))
    assert three.tau == pytest.approx(expected, rel=1e-12)
    # It matters in high dimension: fine noise of many clients in a vector of a million numbers.
    high = DiscreteGaussianSum(noise_share=0.7, honest=3, l2_sensitivity=1.0, dimension=10**6)
    assert high.renyi([2.0])[0] > 2 * three.renyi([2.0])[0]


def test_a_share_of_less_than_half_a_step_has_no_bound() -> None:
    with pytest.raises(ValueError, match=r"noise_share must be at least 0\.5"):
        DiscreteGaussianSum(noise_share=0.4, honest=3, l2_sensitivity=1.0, dimension=1)


KINDS = pytest.mark.parametrize("kind", [DiscreteGaussianSum, SkellamSum])


@KINDS
def test_fine_noise_costs_what_gaussian_noise_costs(kind: type[DiscreteGaussianSum]) -> None:
    """80 full batches at noise 12.4, the design's example: 3.01 by PLD for the Gaussian, 3.26 by RDP."""
    fine = kind(noise_share=12.4 * 2**16, honest=1, l2_sensitivity=2**16, dimension=6018, releases=80)
    spent = epsilon([fine], 1e-5)
    exact = epsilon([Gaussian(noise_multiplier=12.4, releases=80)], 1e-5)
    assert spent.accountant == RDP_ACCOUNTANT
    assert spent.epsilon == spent.rdp_epsilon == pytest.approx(3.26, abs=5e-3)
    assert spent.epsilon == pytest.approx(exact.rdp_epsilon, rel=1e-3)
    assert exact.epsilon == pytest.approx(3.01, abs=1e-3)


@KINDS
def test_what_counts_is_the_noise_of_the_honest(kind: type[DiscreteGaussianSum]) -> None:
    """Rule 2: the same shares with half of the clients honest have less noise by sqrt 2."""
    ten, five = (
        kind(noise_share=12.4 * 2**16 / math.sqrt(10), honest=honest, l2_sensitivity=2**16, dimension=6018, releases=80)
        for honest in (10, 5)
    )
    assert ten.noise_multiplier == pytest.approx(12.4)
    assert five.noise_multiplier == pytest.approx(12.4 / math.sqrt(2))
    assert epsilon([five], 1e-5).epsilon > 1.4 * epsilon([ten], 1e-5).epsilon
    assert "each of 5 honest clients" in five.describe()


@KINDS
def test_a_history_with_one_such_sum_is_claimed_by_rdp(kind: type[DiscreteGaussianSum]) -> None:
    """Rule 4."""
    sum_ = kind(noise_share=100.0, honest=4, l2_sensitivity=50.0, dimension=10)
    alone = epsilon([Gaussian(noise_multiplier=2.0)], 1e-5)
    both = epsilon([sum_, Gaussian(noise_multiplier=2.0)], 1e-5)
    assert alone.accountant.startswith("PLD")
    assert both.accountant == RDP_ACCOUNTANT
    assert both.epsilon == both.rdp_epsilon > alone.rdp_epsilon


@pytest.mark.parametrize("kind", [DiscreteGaussianSum, SkellamSum])
@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_sampled_sums_cost_at_least_what_they_reveal(kind: type[DiscreteGaussianSum], rate: float) -> None:
    """One dimension, summed over all outcomes, both directions of adding and removing."""
    share, honest, moved = 1.0, 9, 3
    noise = discrete_gaussian_sum(share, honest) if kind is DiscreteGaussianSum else skellam(share, honest)
    without, shifted = noise, np.roll(noise, moved)
    seen = np.isfinite(without) & np.isfinite(shifted)
    drawn = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + shifted)
    release = kind(noise_share=share, honest=honest, l2_sensitivity=float(moved), dimension=1, sample_rate=rate)
    full = kind(noise_share=share, honest=honest, l2_sensitivity=float(moved), dimension=1)
    for order, bound, whole in zip(ORDERS, release.renyi(ORDERS), full.renyi(ORDERS), strict=True):
        for one, other in itertools.permutations((without[seen], drawn[seen])):
            assert float(logsumexp(order * one + (1 - order) * other)) / (order - 1) <= bound * (1 + 1e-9)
        assert bound <= whole


@KINDS
def test_a_broken_order_costs_no_less_than_what_it_reveals(kind: type[DiscreteGaussianSum]) -> None:
    noise = discrete_gaussian_sum(1.0, 9) if kind is DiscreteGaussianSum else skellam(1.0, 9)
    release = kind(noise_share=1.0, honest=9, l2_sensitivity=2.0, dimension=1)
    for order in (1.1, 1.5, 2.7, 6.3):
        assert divergence(noise, 2, order) <= release.renyi([order])[0]


def test_rounding_enters_the_sensitivity() -> None:
    """Rule 9: clip + sqrt(d) grid. No rounding of a clipped vector, up, down or at random, is longer."""
    rng = np.random.default_rng(3)
    clip, grid, d = 1.0, 0.05, 40
    bound = rounded_sensitivity(clipping_norm=clip, grid=grid, dimension=d)
    for _ in range(200):
        vector = rng.standard_normal(d)
        vector *= clip / np.linalg.norm(vector) / grid
        away = np.sign(vector) * np.ceil(np.abs(vector))
        assert np.linalg.norm(away) <= bound
    release = SkellamSum(noise_share=20.0, honest=2, l2_sensitivity=bound, dimension=d)
    assert np.abs(away).sum() <= release.l1_sensitivity


@KINDS
def test_many_sums_are_one_repeated(kind: type[DiscreteGaussianSum]) -> None:
    many: Release = kind(noise_share=10.0, honest=3, l2_sensitivity=4.0, dimension=5, releases=12)
    once: Release = kind(noise_share=10.0, honest=3, l2_sensitivity=4.0, dimension=5)
    assert many.parts() == (once, 12)
    assert epsilon([many], 1e-5) == epsilon([once] * 12, 1e-5)
