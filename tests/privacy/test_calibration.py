"""Rule 4: what is planned is what the accountant will charge."""

import math
from dataclasses import replace

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from privacy import calibration
from privacy.accountant import epsilon
from privacy.calibration import (
    MOST_STEPS,
    least_noise,
    least_noise_multiplier,
    noise_multiplier_for,
    rounds_affordable,
    steps_affordable,
)
from privacy.mechanisms import ClientLevel, DiscreteGaussianSum, DpSgd, Gaussian, NoisyCounts, Release
from security.errors import UsageError


def dp_sgd(noise_multiplier: float, sample_rate: float, steps: int) -> DpSgd:
    return DpSgd(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)


@pytest.mark.parametrize(
    ("budget", "rate", "steps"),
    [(0.05, 0.01, 50), (0.05, 1.0, 1), (1.0, 1e-4, 9000), (3.0, 0.1, 200), (8.0, 1.0, 20), (50.0, 1.0, 200)],
)
def test_the_smallest_noise_on_the_grid_that_keeps_the_budget(budget: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon=budget, delta=1e-5, sample_rate=rate, steps=steps)
    assert sigma == round(sigma, 4)
    assert epsilon([dp_sgd(sigma, rate, steps)], 1e-5).epsilon <= budget
    assert epsilon([dp_sgd(round(sigma - 1e-4, 4), rate, steps)], 1e-5).epsilon > budget


def test_full_batches_need_what_the_closed_form_says() -> None:
    """Balle & Wang 2018 (arXiv 1805.06530), theorem 8."""

    def excess(sigma: float) -> float:
        mu = math.sqrt(80) / sigma
        return float(norm.cdf(mu / 2 - 3 / mu) - math.exp(3) * norm.cdf(-mu / 2 - 3 / mu)) - 1e-5

    exact = brentq(excess, 1, 100)
    sigma = noise_multiplier_for(epsilon=3, delta=1e-5, sample_rate=1, steps=80)
    assert exact <= sigma <= exact + 2e-4


def test_what_was_spent_before_needs_more_noise_now() -> None:
    past = [dp_sgd(1.0, 0.02, 50), dp_sgd(2.0, 0.02, 50)]
    alone = noise_multiplier_for(epsilon=3, delta=1e-5, sample_rate=0.02, steps=300)
    after = noise_multiplier_for(epsilon=3, delta=1e-5, sample_rate=0.02, steps=300, spent=past)
    assert after > alone
    assert epsilon([*past, dp_sgd(after, 0.02, 300)], 1e-5).epsilon <= 3
    assert epsilon([*past, dp_sgd(after - 1e-4, 0.02, 300)], 1e-5).epsilon > 3
    counted = {dp_sgd(1.0, 0.02, 1): 50, dp_sgd(2.0, 0.02, 10): 5}
    assert noise_multiplier_for(epsilon=3, delta=1e-5, sample_rate=0.02, steps=300, spent=counted) == after


def test_an_exhausted_budget_cannot_be_met() -> None:
    with pytest.raises(UsageError, match=r"epsilon = 1 can't be met: earlier releases .* cost 5\.13"):
        noise_multiplier_for(epsilon=1, delta=1e-5, sample_rate=0.01, steps=1, spent=[dp_sgd(1, 0.032, 31)] * 20)


def test_a_delta_that_no_noise_can_meet_is_refused() -> None:
    with pytest.raises(UsageError, match="can't be met by any noise multiplier"):
        noise_multiplier_for(epsilon=1, delta=1e-12, sample_rate=0.1, steps=1_000_000)


@pytest.mark.parametrize("budget", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_is_a_positive_number(budget: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        noise_multiplier_for(epsilon=budget, delta=1e-5, sample_rate=0.1, steps=1)
    with pytest.raises(ValueError, match="epsilon"):
        steps_affordable(epsilon=budget, delta=1e-5, noise_multiplier=1, sample_rate=0.1)


@pytest.mark.parametrize(
    ("change", "name"), [({"delta": 0.0}, "delta"), ({"sample_rate": 0.0}, "sample_rate"), ({"steps": 0}, "steps")]
)
def test_other_values_out_of_range_are_refused(change: dict[str, float], name: str) -> None:
    values = {"epsilon": 1.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 10, **change}
    with pytest.raises(ValueError, match=name):
        noise_multiplier_for(**values)  # type: ignore[arg-type]


def test_a_result_above_the_budget_is_never_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_noise", lambda *_: 0.5)
    with pytest.raises(AssertionError, match="above the budget"):
        noise_multiplier_for(epsilon=1, delta=1e-5, sample_rate=0.1, steps=100)


def test_the_same_question_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {"epsilon": 2.0, "delta": 1e-5, "sample_rate": 1.0, "steps": 7}
    first = noise_multiplier_for(**ask)  # type: ignore[arg-type]
    monkeypatch.setattr(calibration, "_first", None)  # searching again would fail
    assert noise_multiplier_for(**ask) == first  # type: ignore[arg-type]


@pytest.mark.parametrize(("budget", "sigma", "rate"), [(3.0, 1.0, 0.05), (1.0, 20.0, 1.0)])
def test_as_many_steps_as_the_budget_affords(budget: float, sigma: float, rate: float) -> None:
    steps = steps_affordable(epsilon=budget, delta=1e-5, noise_multiplier=sigma, sample_rate=rate)
    assert epsilon([dp_sgd(sigma, rate, steps)], 1e-5).epsilon <= budget
    assert epsilon([dp_sgd(sigma, rate, steps + 1)], 1e-5).epsilon > budget


def test_steps_after_what_was_spent() -> None:
    ask = {"epsilon": 3.0, "delta": 1e-5, "noise_multiplier": 1.0, "sample_rate": 0.05}
    alone = steps_affordable(**ask)  # type: ignore[arg-type]
    assert steps_affordable(**ask, spent=[dp_sgd(1.0, 0.05, 30)]) == alone - 30  # type: ignore[arg-type]
    assert steps_affordable(**ask, spent=[dp_sgd(1.0, 0.05, alone)]) == 0  # type: ignore[arg-type]
    assert steps_affordable(**ask, spent=[dp_sgd(0.5, 0.5, 100)]) == 0  # type: ignore[arg-type]


def test_planned_steps_are_affordable() -> None:
    sigma = noise_multiplier_for(epsilon=2, delta=1e-6, sample_rate=0.04, steps=120)
    assert steps_affordable(epsilon=2, delta=1e-6, noise_multiplier=sigma, sample_rate=0.04) >= 120


def test_steps_are_counted_up_to_a_limit() -> None:
    steps = steps_affordable(epsilon=1, delta=1e-5, noise_multiplier=1e6, sample_rate=1)
    assert steps == MOST_STEPS == 1_000_000


class TestWhatElseARunReleases:
    """Rule 10: the counts of every evaluation are releases too, and a calibration covers them."""

    counts = NoisyCounts(noise=30.0)

    def test_metrics_take_their_part_of_the_budget(self) -> None:
        ask = {"epsilon": 2.0, "delta": 1e-5, "sample_rate": 0.05, "steps": 200}
        alone = noise_multiplier_for(**ask)  # type: ignore[arg-type]
        sigma = noise_multiplier_for(**ask, also={self.counts: 20})  # type: ignore[arg-type]
        assert sigma > alone
        whole = [dp_sgd(sigma, 0.05, 200), *[self.counts] * 20]
        assert 1.99 < epsilon(whole, 1e-5).epsilon <= 2.0
        assert epsilon([dp_sgd(round(sigma - 1e-4, 4), 0.05, 200), *[self.counts] * 20], 1e-5).epsilon > 2.0

    def test_what_was_spent_and_what_is_planned_count_alike(self) -> None:
        past = dp_sgd(2.0, 0.05, 50)
        ask = {"epsilon": 2.0, "delta": 1e-5, "sample_rate": 0.05, "steps": 200}
        both = noise_multiplier_for(**ask, also=[self.counts] * 3, spent=[past])  # type: ignore[arg-type]
        assert both == noise_multiplier_for(**ask, spent=[past, *[self.counts] * 3])  # type: ignore[arg-type]

    def test_metrics_that_cost_more_than_the_budget_are_named(self) -> None:
        with pytest.raises(UsageError, match=r"epsilon = 1 can't be met: what else is planned.* costs 2\.\d+ .*fewer"):
            noise_multiplier_for(
                epsilon=1, delta=1e-5, sample_rate=0.1, steps=1, also=[NoisyCounts(noise=5.0)] * 4, spent=[]
            )

    def test_a_spent_budget_is_named_first(self) -> None:
        with pytest.raises(UsageError, match="earlier releases on this budget cost"):
            noise_multiplier_for(
                epsilon=1, delta=1e-5, sample_rate=0.1, steps=1, also=[self.counts], spent=[dp_sgd(1, 0.032, 31)] * 20
            )


@pytest.mark.parametrize(
    ("run", "noise"),
    [
        (DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=50, records_per_unit=3), "noise_multiplier"),
        (Gaussian(noise_multiplier=1.0, releases=80), "noise_multiplier"),
        (NoisyCounts(noise=1.0), "noise"),
        (ClientLevel(noise_multiplier=1.0, cohort="poisson", rate=0.05, rounds=100), "noise_multiplier"),
        (ClientLevel(noise_multiplier=1.0, cohort="fixed", size=50, of=1000, rounds=10), "noise_multiplier"),
        (DiscreteGaussianSum(noise_share=1.0, honest=3, l2_sensitivity=8.0, dimension=10, releases=5), "noise_share"),
    ],
)
def test_any_mechanism_gets_the_least_noise_on_the_grid(run: Release, noise: str) -> None:
    def cost(value: float) -> float:
        return epsilon([replace(run, **{noise: value})], 1e-5).epsilon  # type: ignore[type-var]

    found = least_noise(run, noise=noise, epsilon=2.0, delta=1e-5)
    assert cost(found) <= 2.0 < cost(round(found - 1e-4, 4))
    assert found == least_noise(replace(run, **{noise: 7.0}), noise=noise, epsilon=2.0, delta=1e-5)  # type: ignore[type-var]


def test_a_coarser_grid_is_the_caller_s_choice() -> None:
    run = DiscreteGaussianSum(noise_share=1.0, honest=3, l2_sensitivity=2.0**16, dimension=10, releases=5)
    found = least_noise(run, noise="noise_share", grid=16.0, epsilon=2.0, delta=1e-5)
    assert found % 16 == 0
    assert epsilon([replace(run, noise_share=found)], 1e-5).epsilon <= 2.0
    assert epsilon([replace(run, noise_share=found - 16)], 1e-5).epsilon > 2.0
    with pytest.raises(ValueError, match="grid"):
        least_noise(run, noise="noise_share", grid=0.0, epsilon=2.0, delta=1e-5)


def test_more_noise_than_a_mechanism_can_do_with_is_the_answer_where_less_has_no_price() -> None:
    """A share below half a step has no published bound, however little noise the budget would ask for."""
    run = DiscreteGaussianSum(noise_share=1.0, honest=50, l2_sensitivity=1.0, dimension=1)
    assert least_noise(run, noise="noise_share", epsilon=50.0, delta=1e-5) == 0.5


class TestReleasesWhoseOtherFieldsHangOnTheNoise:
    """Shares of noise: the grid, and with it the sensitivity in steps, follows from the multiplier."""

    @staticmethod
    def sums(noise_multiplier: float) -> DiscreteGaussianSum:
        if not 0.3 <= noise_multiplier <= 50.0:
            raise ValueError("no grid")
        steps = 2.0 ** (12 - math.floor(math.log2(noise_multiplier)))
        return DiscreteGaussianSum(
            noise_share=noise_multiplier * steps / 2, honest=4, l2_sensitivity=steps, dimension=1000
        )

    def test_the_least_noise_that_meets_the_target(self) -> None:
        counts = {NoisyCounts(noise=20.0): 2}
        for also in ({}, counts):
            found = least_noise_multiplier(self.sums, times=10, epsilon=3.0, delta=1e-5, also=also)
            less = round(found - 1e-4, 4)
            assert epsilon({self.sums(found): 10, **also}, 1e-5).epsilon <= 3.0
            assert epsilon({self.sums(less): 10, **also}, 1e-5).epsilon > 3.0

    def test_noise_below_what_has_a_price_is_not_tried(self) -> None:
        assert least_noise_multiplier(self.sums, times=1, epsilon=100.0, delta=1e-5) == 0.3

    def test_a_target_that_no_grid_can_carry_is_refused(self) -> None:
        with pytest.raises(UsageError, match="can't be met by any noise multiplier for which there is such a release"):
            least_noise_multiplier(self.sums, times=10_000, epsilon=0.1, delta=1e-5)
        with pytest.raises(UsageError, match="what else is planned"):
            least_noise_multiplier(self.sums, times=1, epsilon=0.5, delta=1e-5, also=[NoisyCounts(noise=1.0)] * 20)
        with pytest.raises(ValueError, match="epsilon must be"):
            least_noise_multiplier(self.sums, times=1, epsilon=-1.0, delta=1e-5)


def test_rounds_with_their_metrics() -> None:
    each = {dp_sgd(1.0, 0.05, 10): 1, NoisyCounts(noise=30.0): 1}
    rounds = rounds_affordable(each, epsilon=3.0, delta=1e-5)
    assert epsilon(dict.fromkeys(each, rounds), 1e-5).epsilon <= 3.0
    assert epsilon(dict.fromkeys(each, rounds + 1), 1e-5).epsilon > 3.0
    assert rounds < steps_affordable(epsilon=3.0, delta=1e-5, noise_multiplier=1.0, sample_rate=0.05) / 10
    assert rounds_affordable(each, epsilon=3.0, delta=1e-5, spent=dict.fromkeys(each, 2)) == rounds - 2
    assert rounds_affordable(each, epsilon=0.01, delta=1e-5) == 0
    with pytest.raises(ValueError, match="releases nothing"):
        rounds_affordable([], epsilon=1.0, delta=1e-5)


def test_steps_of_a_person_s_records() -> None:
    ask = {"epsilon": 3.0, "delta": 1e-5, "noise_multiplier": 3.0, "sample_rate": 0.05}
    steps = steps_affordable(**ask, records_per_unit=4)  # type: ignore[arg-type]
    assert 0 < steps < steps_affordable(**ask)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ask", "expected"),
    [
        ({"epsilon": 1.0, "delta": 1e-5, "sample_rate": 1e-4, "steps": 9000}, 0.5091),
        ({"epsilon": 3.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 200}, 2.1782),
        ({"epsilon": 3.0, "delta": 1e-5, "sample_rate": 1.0, "steps": 80}, 12.4379),
        ({"epsilon": 2.0, "delta": 1e-5, "sample_rate": 0.1, "steps": 50, "records_per_unit": 3}, 4.5069),
        ({"epsilon": 8.0, "delta": 1e-5, "sample_rate": 0.03, "steps": 300, "records_per_unit": 16}, 5.1462),
    ],
)
def test_known_answers(ask: dict[str, float], expected: float) -> None:
    """A plan's noise is part of its digest: another release of this package must not find another one."""
    assert noise_multiplier_for(**ask) == expected  # type: ignore[arg-type]
