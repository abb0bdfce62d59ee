"""Rule 4: the figure is PLD, pessimistic, with RDP beside it; it may over-report and never under-reports."""

import math
import time
from dataclasses import dataclass
from typing import Any

import pytest
from dp_accounting import dp_event
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from privacy import accountant, losses, rdp
from privacy.accountant import RDP_ACCOUNTANT, Spent, curve, delta_for, deltas_for, epsilon, history, renyi
from privacy.mechanisms import ClientLevel, DpSgd, Gaussian, NoisyCounts, Release, SkellamSum
from privacy.neighbours import Neighbours


def dp_sgd(noise_multiplier: float, sample_rate: float, steps: int) -> DpSgd:
    return DpSgd(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)


def gaussian_delta(eps: float, mu: float) -> float:
    """Balle & Wang 2018 (arXiv 1805.06530), theorem 8: the Gaussian mechanism with mu = sensitivity / deviation."""
    return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)))


def gaussian_epsilon(delta: float, mu: float) -> float:
    if gaussian_delta(0, mu) <= delta:
        return 0.0
    return float(brentq(lambda eps: gaussian_delta(eps, mu) - delta, 0, mu * mu + 20 * mu, xtol=1e-12))


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-12])
@pytest.mark.parametrize(("sigma", "steps"), [(5, 20), (1, 1), (0.5, 3), (40, 1000), (1000, 20), (30, 1)])
def test_full_batches_cost_what_the_closed_form_says(sigma: float, steps: int, delta: float) -> None:
    exact = gaussian_epsilon(delta, math.sqrt(steps) / sigma)
    bound = epsilon([dp_sgd(sigma, 1, steps)], delta).epsilon
    loose = 5e-3 if delta > 1e-10 else 0.3  # near 1e-12 the allowance for rounding shows
    assert exact - 1e-9 <= bound <= exact + loose


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9, 1e-12])
def test_unlike_gaussians_compose_as_the_closed_form_says(delta: float) -> None:
    rounds = [dp_sgd(4 + i, 1, 1 + i) for i in range(8)]
    exact = gaussian_epsilon(delta, math.sqrt(sum((1 + i) / (4 + i) ** 2 for i in range(8))))
    assert exact - 1e-9 <= epsilon(rounds, delta).epsilon <= exact + 5e-3


@pytest.mark.parametrize("delta", [1e-5, 1e-9, 2e-11, 1e-12, 1e-13, 1e-14])
@pytest.mark.parametrize(("steps", "mu"), [(1_000, 1.0), (10_000, 0.5), (10_000, 1.0)])
def test_rounding_of_many_compositions_never_under_reports(steps: int, mu: float, delta: float) -> None:
    # At a rate of 1 - r the composed sums are at least (1 - r)^n times as likely as those of the full batch, whence
    # eps(delta) >= eps_full(delta / (1 - r)^n) - n r. Without an allowance for the rounding of the Fourier
    # transforms the smallest deltas are under-reported.
    r = 1e-9
    lower = gaussian_epsilon(delta * (1 - r) ** -steps, mu) - steps * r
    bound = epsilon([dp_sgd(math.sqrt(steps) / mu, 1 - r, steps)], delta).epsilon
    assert bound >= lower
    if delta > 1e-10:
        assert bound <= lower + 0.02


def test_the_figures_of_the_literature_and_of_the_design() -> None:
    central = epsilon([dp_sgd(1, 0.01, 1000)], 1e-5)
    assert central.epsilon == pytest.approx(1.829, abs=5e-4)
    assert central.rdp_epsilon == pytest.approx(2.101, abs=5e-4)

    federated = epsilon([dp_sgd(1, 0.032, 31)] * 20, 1e-5)
    assert federated.epsilon == pytest.approx(5.133, abs=6e-4)
    assert federated.rdp_epsilon == pytest.approx(5.690, abs=1e-3)

    assert epsilon([dp_sgd(5, 1, 1)] * 20, 1e-5).epsilon == pytest.approx(3.849, abs=5e-4)


def test_the_figure_says_what_it_is() -> None:
    spent = epsilon([dp_sgd(1, 0.01, 10)], 1e-5)
    assert spent.delta == 1e-5
    assert spent.relation == "add or remove one unit"
    assert spent.accountant == "PLD, pessimistic, interval 0.001"


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(1.0, 0.01, 1000), (0.8, 0.05, 100), (2.0, 0.2, 50)])
def test_agrees_with_the_accountants_of_opacus(sigma: float, rate: float, steps: int) -> None:
    ours = epsilon([dp_sgd(sigma, rate, steps)], 1e-5)
    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history = rdp.history = [(sigma, rate, steps)]
    assert ours.epsilon == pytest.approx(prv.get_epsilon(1e-5), abs=0.02)
    assert ours.rdp_epsilon == pytest.approx(rdp.get_epsilon(1e-5), abs=0.01)


def test_no_release_costs_nothing() -> None:
    assert epsilon([], 1e-5) == Spent(epsilon=0.0, delta=1e-5, rdp_epsilon=0.0)
    assert epsilon({dp_sgd(1, 0.1, 1): 0}, 1e-5).epsilon == 0
    assert delta_for([], 0.0) == 0


def test_only_the_multiset_of_steps_matters() -> None:
    rounds = [dp_sgd(1.1, 0.05, 10)] * 3 + [dp_sgd(2, 0.1, 4), dp_sgd(2, 0.1, 1)]
    spent = epsilon(rounds, 1e-5)
    for same in (
        reversed(rounds),
        [dp_sgd(2, 0.1, 5), dp_sgd(1.1, 0.05, 30)],
        {dp_sgd(1.1, 0.05, 15): 2, dp_sgd(2, 0.1, 1): 5},
    ):
        assert epsilon(same, 1e-5) is spent  # not computed again
    assert epsilon([*rounds, dp_sgd(2, 0.1, 1)], 1e-5).epsilon > spent.epsilon
    assert epsilon(rounds, 1e-6).epsilon > spent.epsilon


def test_a_history_counts_its_smallest_parts() -> None:
    step = dp_sgd(1, 0.1, 1)
    assert history([dp_sgd(1, 0.1, 10)] * 20) == history([dp_sgd(1, 0.1, 200)]) == {(step, 200)}


sigmas = st.floats(0.6, 8)
rates = st.floats(1e-3, 1)
counts = st.integers(1, 300)
more = st.floats(1, 3)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(sigma=sigmas, rate=rates, steps=counts, factor=more)
def test_more_steps_a_higher_rate_or_less_noise_cost_more(sigma: float, rate: float, steps: int, factor: float) -> None:
    spent = epsilon([dp_sgd(sigma, rate, steps)], 1e-5)
    assert spent.epsilon <= spent.rdp_epsilon + 0.02  # the interval's price, at worst
    for dearer in (
        dp_sgd(sigma, rate, math.ceil(steps * factor)),
        dp_sgd(sigma, min(1.0, rate * factor), steps),
        dp_sgd(sigma / factor, rate, steps),
    ):
        assert epsilon([dearer], 1e-5).epsilon >= spent.epsilon - 1e-6


def test_hardly_any_noise_gives_no_claim() -> None:
    assert epsilon([dp_sgd(1e-3, 0.5, 1)], 1e-5).epsilon == math.inf
    assert epsilon([dp_sgd(0.5, 1, 10**6)], 1e-5).epsilon == math.inf
    assert 0.5 <= delta_for([dp_sgd(1e-3, 0.5, 1)], 10.0) <= 0.5 + 1e-9  # it is in the batch, and known, or not
    assert delta_for([dp_sgd(1e-3, 1, 1)], 10.0) == 1.0


def test_delta_is_the_inverse_of_epsilon() -> None:
    rounds = [dp_sgd(1, 0.05, 100), dp_sgd(3, 1, 2)]
    spent = epsilon(rounds, 1e-5)
    assert delta_for(rounds, spent.epsilon) == pytest.approx(1e-5, rel=1e-6)
    assert delta_for(rounds, spent.epsilon + 1) < 1e-5 < delta_for(rounds, spent.epsilon - 1) <= 1


@pytest.mark.parametrize("eps", [0.0, 1.0, 3.0])
def test_delta_never_under_reports(eps: float) -> None:
    exact = gaussian_delta(eps, math.sqrt(20) / 5)
    assert exact <= delta_for([dp_sgd(5, 1, 20)], eps) <= exact * 1.001


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 2, math.nan])
def test_delta_must_be_a_probability_between(delta: float) -> None:
    with pytest.raises(ValueError, match="delta"):
        epsilon([], delta)


@pytest.mark.parametrize("eps", [-1.0, math.nan])
def test_epsilon_must_not_be_negative(eps: float) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        delta_for([], eps)


def test_a_release_cannot_be_taken_back() -> None:
    with pytest.raises(ValueError, match="-1 times"):
        epsilon({dp_sgd(1, 0.1, 1): -1}, 1e-5)


@dataclass(frozen=True)
class Other:
    """Any other mechanism, for the accountant to meet."""

    priced_as: dp_event.DpEvent
    relation: Neighbours = Neighbours.ADD_OR_REMOVE_ONE

    def event(self) -> dp_event.DpEvent:
        return self.priced_as

    def looser_event(self) -> dp_event.DpEvent:
        return self.priced_as

    def parts(self) -> tuple[Release, int]:
        return self, 1

    def to_json(self) -> dict[str, Any]:
        return {"mechanism": "other", "event": repr(self.priced_as)}

    def describe(self) -> str:
        return "another mechanism"


def test_another_mechanism_composes_in_its_own_right() -> None:
    laplace = Other(dp_event.LaplaceDpEvent(2.0))  # pure epsilon 1 / 2
    alone = epsilon([laplace], 1e-9).epsilon
    assert 0.5 - 1e-6 <= alone <= 0.502
    both = epsilon([laplace, dp_sgd(1, 0.01, 100)], 1e-5).epsilon
    assert epsilon([dp_sgd(1, 0.01, 100)], 1e-5).epsilon < both < 1.5


def test_what_cannot_be_priced_for_this_relation_is_an_error() -> None:
    coin = Other(dp_event.RandomizedResponseDpEvent(0.5, 2))  # has no meaning if a unit is added or removed
    with pytest.raises(ValueError, match="'another mechanism' can't be priced for its neighbours, ADD_OR_REMOVE_ONE"):
        epsilon([coin], 1e-5)


def test_ordinary_parameters_raise_no_alarm(caplog: pytest.LogCaptureFixture) -> None:
    epsilon([dp_sgd(1.234, 0.1, 7)], 1e-5)
    epsilon([dp_sgd(1e6, 0.01, 7)], 1e-5)
    assert not caplog.records


@pytest.mark.parametrize("noise", [1e-300, 1e-4, 1e-3, 2.0**20, 1e300])
@pytest.mark.parametrize("rate", [1e-6, 0.5, 1.0])
@pytest.mark.parametrize("records", [1, 3])
def test_absurd_noise_gives_a_bound_or_no_claim(noise: float, rate: float, records: int) -> None:
    release = DpSgd(noise_multiplier=noise, sample_rate=rate, steps=10, records_per_unit=records)
    spent = epsilon([release], 1e-5)
    if noise < 1:
        # Whoever is drawn is found out, nobody else.
        drawn = -math.expm1(10 * records * math.log1p(-rate)) if rate < 1 else 1.0
        assert spent.epsilon == (math.inf if drawn > 1e-5 else 0)
        assert drawn * (1 - 1e-9) <= delta_for([release], 1.0) <= drawn * (1 + 1e-9) + 1e-9
    else:
        assert spent.epsilon <= 0.05


class TestWhichAccountantAndRelation:
    """Rule 4: vector sums of discrete noise, and cohorts of a fixed size, have no licensed loss distribution."""

    sums = SkellamSum(noise_share=50.0, honest=4, l2_sensitivity=20.0, dimension=10, releases=3)
    cohorts = ClientLevel(noise_multiplier=5.0, cohort="fixed", size=10, of=1000, rounds=10)

    @pytest.mark.parametrize("release", [sums, cohorts])
    def test_they_are_claimed_by_rdp_and_say_so(self, release: Release) -> None:
        spent = epsilon([release], 1e-5)
        assert spent.accountant == RDP_ACCOUNTANT == "RDP, orders 1.1 to 1024"
        assert 0 < spent.epsilon == spent.rdp_epsilon
        assert delta_for([release], spent.epsilon) == pytest.approx(1e-5, rel=1e-6)

    def test_so_is_a_history_that_holds_one(self) -> None:
        mixed = epsilon([self.sums, dp_sgd(1, 0.01, 100)], 1e-5)
        assert mixed.accountant == RDP_ACCOUNTANT
        assert mixed.epsilon > epsilon([dp_sgd(1, 0.01, 100)], 1e-5).rdp_epsilon
        assert mixed.relation == "add or remove one unit"

    def test_unlike_neighbours_do_not_add(self) -> None:
        with pytest.raises(
            ValueError, match=r"unlike neighbours don't add: .*DP-FedAvg.* 'replace one unit', .*DP-SGD"
        ):
            epsilon([self.cohorts, dp_sgd(1, 0.01, 100)], 1e-5)
        for ask in (lambda both: delta_for(both, 1.0), lambda both: renyi(both, 2.0)):
            with pytest.raises(ValueError, match="unlike neighbours"):
                ask([self.cohorts, dp_sgd(1, 0.01, 100)])

    def test_a_fixed_cohort_is_about_replacing_one_client(self) -> None:
        assert epsilon([self.cohorts], 1e-5).relation == "replace one unit"


class TestCurve:
    rounds = (dp_sgd(1, 0.05, 100), NoisyCounts(noise=20.0))

    def test_it_is_epsilon_at_each_delta(self) -> None:
        deltas = [1e-3, 1e-5, 1e-7]
        assert curve(self.rounds, deltas) == [epsilon(self.rounds, delta) for delta in deltas]

    def test_and_delta_at_each_epsilon(self) -> None:
        epsilons = [0.0, 1.0, 3.0]
        assert deltas_for(self.rounds, epsilons) == [delta_for(self.rounds, eps) for eps in epsilons]
        assert deltas_for([], epsilons) == [0.0, 0.0, 0.0]

    def test_an_infinite_epsilon_leaves_what_no_epsilon_makes_up_for(self) -> None:
        assert deltas_for(self.rounds, [math.inf])[0] < 1e-12
        assert deltas_for([dp_sgd(1e-3, 0.5, 1)], [math.inf]) == [pytest.approx(0.5)]

    def test_a_smaller_delta_costs_more(self) -> None:
        found = [spent.epsilon for spent in curve(self.rounds, [1e-2, 1e-4, 1e-6, 1e-8])]
        assert found == sorted(found)
        assert len(set(found)) == 4


class TestRenyi:
    def test_divergences_of_one_order_add(self) -> None:
        one, other = dp_sgd(1, 0.05, 1), Gaussian(noise_multiplier=3.0)
        expected = 7 * renyi([one], 4.0) + 2 * renyi([other], 4.0)
        assert renyi({one: 7, other: 2}, 4.0) == pytest.approx(expected, rel=1e-12)
        assert renyi([other], 4.0) == pytest.approx(4 / 18, rel=1e-12)
        assert renyi([], 4.0) == 0

    def test_there_is_a_list_of_orders(self) -> None:
        with pytest.raises(ValueError, match="not in"):
            renyi([dp_sgd(1, 0.05, 1)], 4.05)


def test_the_claim_alone_is_the_same_figure() -> None:
    rounds = [dp_sgd(1, 0.05, 100), NoisyCounts(noise=20.0)]
    assert accountant.claim(history(rounds), 1e-5) == epsilon(rounds, 1e-5).epsilon
    assert accountant.claim(history([]), 1e-5) == 0


def test_asking_after_each_of_100_unlike_rounds_is_quick() -> None:
    """1.3 s on the machine this was written on; 10 s allow for a busy one."""
    for cached in (accountant._spent, accountant.claim, losses.of, losses.of_part, rdp.of):
        cached.cache_clear()
    started, rounds, last = time.process_time(), [], 0.0
    for i in range(100):
        rounds.append(dp_sgd(1 + 0.01 * i, 0.02 + 0.0003 * i, 10 + i % 7))
        spent = epsilon(rounds, 1e-5)
        assert spent.epsilon > last
        last = spent.epsilon
    assert time.process_time() - started < 10
    assert last == pytest.approx(4.28105, abs=1e-4)
