"""Sums of shares of rounded Gaussian noise are one Gaussian mechanism, seen later (rules 2, 4 and 9)."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from privacy.accountant import ACCOUNTANT, delta_for, distance, epsilon
from privacy.losses.grid import INTERVAL
from privacy.mechanisms import DpSgd, FromTables, Gaussian, RenyiPriced, RoundedGaussianSum, release_from_json
from privacy.noise import ReproducibleNoise

SUM = RoundedGaussianSum(noise_share=4000.0, honest=5, l2_sensitivity=2000.0, dimension=1000)


def pmf_of_sum(share: float, honest: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and probabilities of a sum of shares: convolved directly."""
    reach = math.ceil(30 * share)
    k = np.arange(-reach, reach + 1)
    one = ndtr((k + 0.5) / share) - ndtr((k - 0.5) / share)
    total = one
    for _ in range(honest - 1):
        total = np.convolve(total, one)
    return np.arange(-(len(total) // 2), len(total) // 2 + 1), total


@pytest.mark.parametrize(("share", "honest"), [(1.0, 2), (1.0, 5), (2.0, 3), (8.0, 4)])
def test_the_sum_is_the_rounding_of_a_gaussian_and_uniforms(share: float, honest: int) -> None:
    """q(k) of the proof by quadrature over the uniforms; even at one step the two agree to the last bits."""
    k, found = pmf_of_sum(share, honest)
    points, weights = np.polynomial.legendre.leggauss(12)
    wide = math.sqrt(honest) * share
    middle = np.abs(k) <= 12 * wide
    density = np.zeros(middle.sum())
    for index in np.ndindex(*([12] * (honest - 1))):
        moved = k[middle] - sum(points[i] / 2 for i in index)
        weight = math.prod(weights[i] / 2 for i in index)
        density += weight * (ndtr((moved + 0.5) / wide) - ndtr((moved - 0.5) / wide))
    alias = 2.2 * math.exp(-((math.pi * share) ** 2) / 2)
    assert np.abs(density - found[middle]).max() <= (honest * (1 + alias) ** (honest - 1) + 1) * alias + 1e-14


@pytest.mark.parametrize(("share", "honest"), [(1.0, 1), (1.0, 3), (2.0, 4), (8.0, 2)])
@pytest.mark.parametrize("moved", [1, 3])
@pytest.mark.parametrize("level", [0.5, 2.0])
def test_a_moved_sum_reveals_no_more_than_the_gaussian(share: float, honest: int, moved: int, level: float) -> None:
    """Hockey-stick divergence of the real distributions against the Gaussian's closed form (Balle & Wang 2018)."""
    _, p = pmf_of_sum(share, honest)
    here, there = np.concatenate([p, np.zeros(moved)]), np.concatenate([np.zeros(moved), p])
    exact = np.maximum(here - math.exp(level) * there, 0).sum()
    z = moved / (share * math.sqrt(honest))
    gaussian = ndtr(z / 2 - level / z) - math.exp(level) * ndtr(-z / 2 - level / z)
    off = (1 + math.exp(level)) * 1000 * math.exp(-((math.pi * share) ** 2) / 2)
    assert exact <= gaussian + off + 1e-15


def test_it_costs_what_the_gaussian_of_all_honest_clients_costs() -> None:
    found, gaussian = (
        epsilon({SUM: 80}, 1e-5),
        epsilon([Gaussian(noise_multiplier=math.sqrt(5) * 2, releases=80)], 1e-5),
    )
    assert gaussian.epsilon <= found.epsilon <= gaussian.epsilon * (1 + 1e-6)
    assert found.accountant == ACCOUNTANT
    assert not isinstance(SUM, RenyiPriced)


def test_sampled_sums_cost_what_steps_of_dp_sgd_cost() -> None:
    sampled = replace(SUM, sample_rate=0.02, noise_share=1000.0, releases=200)
    step = DpSgd(noise_multiplier=sampled.noise_multiplier, sample_rate=0.02, steps=200)
    found, known = epsilon([sampled], 1e-5).epsilon, epsilon([step], 1e-5).epsilon
    assert found == pytest.approx(known, abs=2 * INTERVAL)
    assert found < epsilon([replace(sampled, sample_rate=1.0)], 1e-5).epsilon / 3


@pytest.mark.parametrize("share", [8.0, 100.0, 2.0**34])
@pytest.mark.parametrize("honest", [1, 1000])
def test_the_distance_is_far_below_every_delta(share: float, honest: int) -> None:
    one = RoundedGaussianSum(noise_share=share, honest=honest, l2_sensitivity=share, dimension=10**6, releases=1000)
    assert isinstance(one, FromTables)
    assert 0 < one.distance < 1e-27
    assert distance([one] * 3) == pytest.approx(3 * one.distance)
    assert one.distance >= 10**9 * honest * math.erfc(13.5 / math.sqrt(2))


def test_the_distance_is_taken_out_of_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each sum were that far off: real distances can't be seen in any figure."""
    monkeypatch.setattr(RoundedGaussianSum, "distance", 1e-9)
    sums, gaussian = {replace(SUM, dimension=999): 3}, Gaussian(noise_multiplier=SUM.noise_multiplier, releases=3)
    found = epsilon(sums, 1e-5)
    slip = 3e-9 * (1 + math.exp(found.epsilon))
    assert delta_for([gaussian], found.epsilon) + slip <= 1e-5 * (1 + 1e-9)
    assert found.epsilon > epsilon([gaussian], 1e-5).epsilon
    assert delta_for(sums, found.epsilon) == pytest.approx(delta_for([gaussian], found.epsilon) + slip, rel=1e-9)
    monkeypatch.setattr(RoundedGaussianSum, "distance", 1e-4)
    assert epsilon({replace(SUM, dimension=998): 1}, 1e-5).epsilon == math.inf


def test_what_is_drawn_is_what_is_priced() -> None:
    """10^5 sums of five shares, in 40 bins against the rounded normal; false alarms one in 10^6."""
    shares = [ReproducibleNoise(bytes([i + 1])).grid_normal((100_000,), 50.0).numpy() for i in range(5)]
    total, wide = np.sum(shares, axis=0), math.sqrt(5 * 50.0**2 + 5 / 12)
    edges = np.unique(np.round(wide * stats.norm.ppf(np.linspace(0, 1, 41)[1:-1]))) + 0.5
    chances = np.diff(np.concatenate([[0], ndtr(edges / wide), [1]]))
    seen = np.bincount(np.searchsorted(edges, total), minlength=len(chances))
    assert stats.chisquare(seen, 100_000 * chances).pvalue > 1e-6


def test_a_share_below_the_proof_is_refused() -> None:
    with pytest.raises(ValueError, match="noise_share must be at least 8 steps, got 7"):
        replace(SUM, noise_share=7.9)


def test_several_records_of_a_person_are_not_sampled_one_by_one() -> None:
    assert replace(SUM, records_per_unit=3).records_per_unit == 3
    with pytest.raises(ValueError, match="several records"):
        replace(SUM, records_per_unit=3, sample_rate=0.5)


def test_it_is_one_fact_in_json() -> None:
    assert release_from_json(SUM.to_json()) == SUM
    assert SUM.parts() == (SUM, 1)
    assert replace(SUM, releases=7).parts() == (SUM, 7)
    assert SUM.describe().startswith("rounded-gaussian-sum: 1 sum of 1000 coordinates")
