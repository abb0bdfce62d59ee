"""Bounds from many runs: covered as they say, and near the truth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from privacy.audit.many_runs import Trials, contradicts, gaussian_lower_bound, lower_bound
from privacy.audit.trade_off import GaussianPrivacy, of_gaussian, of_releases
from privacy.mechanisms import Gaussian


def trials(n: int, threshold: float, mu: float, rng: np.random.Generator) -> Trials:
    """Of a Gaussian mechanism; counts of independent runs are binomial."""
    return Trials(
        with_unit=n,
        detected=int(rng.binomial(n, stats.norm.sf(threshold - mu))),
        without_unit=n,
        false_alarms=int(rng.binomial(n, stats.norm.sf(threshold))),
    )


def test_rates_are_bounded_as_clopper_and_pearson_do() -> None:
    found = Trials(with_unit=100, detected=90, without_unit=200, false_alarms=10)
    one = stats.binomtest(90, 100).proportion_ci(0.9, "exact").low
    other = stats.binomtest(10, 200).proportion_ci(0.9, "exact").high
    assert lower_bound(found, delta=0.0, alpha=0.1) == pytest.approx(
        max(math.log(one / other), math.log((1 - other) / (1 - one)))
    )


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_bounds_are_above_the_truth_as_seldom_as_they_say(mu: float) -> None:
    """Brute force: the probability of all counts under which a bound at alpha .05 is too large."""
    truth, delta, threshold, n = GaussianPrivacy(mu).epsilon(1e-3), 1e-3, 1.5 * mu, 14
    detected = stats.binom(n, stats.norm.sf(threshold - mu)).pmf(range(n + 1))
    false_alarms = stats.binom(n, stats.norm.sf(threshold)).pmf(range(n + 1))
    wrong = dict.fromkeys((lower_bound, gaussian_lower_bound), 0.0)
    for d, f in product(range(n + 1), repeat=2):
        found = Trials(with_unit=n, detected=d, without_unit=n, false_alarms=f)
        for bound in wrong:
            if bound(found, delta=delta, alpha=0.05) > truth + 1e-6:
                wrong[bound] += detected[d] * false_alarms[f]
    assert max(wrong.values()) <= 0.05


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0])
def test_a_true_claim_is_contradicted_as_seldom_as_is_said(mu: float) -> None:
    """Brute force over all counts, as above, at both ends of the curve."""
    n = 14
    for threshold in (-0.5, mu / 2, mu + 0.5):
        detected = stats.binom(n, stats.norm.sf(threshold - mu)).pmf(range(n + 1))
        false_alarms = stats.binom(n, stats.norm.sf(threshold)).pmf(range(n + 1))
        wrong = 0.0
        for d, f in product(range(n + 1), repeat=2):
            found = Trials(with_unit=n, detected=d, without_unit=n, false_alarms=f)
            if contradicts(of_gaussian(mu), found, alpha=0.05):
                wrong += detected[d] * false_alarms[f]
        assert wrong <= 0.05


def test_a_curve_is_contradicted_where_its_mu_is_below_what_the_trials_show() -> None:
    found = trials(2000, 0.5, 1.0, np.random.default_rng(1))
    shown = gaussian_lower_bound(found, delta=1e-5, alpha=0.001)
    assert shown > 2 * lower_bound(found, delta=1e-5, alpha=0.001) > 0, (
        "one point of the curve tells less than all of it"
    )
    for mu in np.linspace(0.1, 2.0, 39):
        is_below = GaussianPrivacy(float(mu)).epsilon(1e-5) < shown - 1e-6
        assert contradicts(of_gaussian(float(mu)), found, alpha=0.001) == is_below
    assert not contradicts(of_releases([Gaussian(noise_multiplier=1.0)]), found, alpha=0.001)
    assert contradicts(of_releases([Gaussian(noise_multiplier=1.6)]), found, alpha=0.001)


def test_many_trials_come_near_the_truth() -> None:
    rng, delta = np.random.default_rng(0), 1e-5
    found = gaussian_lower_bound(trials(100_000, 0.5, 1.0, rng), delta=delta, alpha=0.001)
    truth = GaussianPrivacy(1.0).epsilon(delta)
    assert 0.93 * truth < found < truth


@pytest.mark.parametrize(("detected", "false_alarms"), [(0, 0), (50, 50), (0, 100), (100, 100)])
def test_trials_that_tell_nothing_bound_nothing(detected: int, false_alarms: int) -> None:
    found = Trials(with_unit=100, detected=detected, without_unit=100, false_alarms=false_alarms)
    assert gaussian_lower_bound(found, delta=1e-5, alpha=0.05) == 0
    if detected == false_alarms:
        assert lower_bound(found, delta=1e-5, alpha=0.05) == 0


def test_impossible_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="impossible"):
        Trials(with_unit=1, detected=2, without_unit=1, false_alarms=0)
    with pytest.raises(ValueError, match="both kinds"):
        Trials(with_unit=0, detected=0, without_unit=1, false_alarms=0)
    with pytest.raises(ValueError, match="alpha"):
        lower_bound(Trials(with_unit=1, detected=1, without_unit=1, false_alarms=0), delta=0.0, alpha=0.0)


@pytest.mark.parametrize(("sigma", "delta"), [(1.0, 1e-5), (0.3, 1e-6), (5.0, 1e-3)])
def test_a_gaussian_costs_what_the_accountant_says(sigma: float, delta: float) -> None:
    from privacy import accountant

    mine = GaussianPrivacy(1 / sigma).epsilon(delta)
    assert mine == pytest.approx(accountant.epsilon([Gaussian(noise_multiplier=sigma)], delta).epsilon, rel=2e-3)
    assert GaussianPrivacy(1 / sigma).delta(mine) == pytest.approx(delta, rel=1e-6)
