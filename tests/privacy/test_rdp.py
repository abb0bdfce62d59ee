"""Renyi divergences: the known series where there is one, brute force where not, and a bound in any case."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS
from opacus.accountants.analysis import rdp as opacus
from scipy.special import logsumexp

from privacy import rdp
from privacy.mechanisms import ClientLevel, DpSgd, Gaussian, NoisyCounts
from privacy.mechanisms.release import Mechanism
from privacy.rdp import ORDERS, UnpricedError

WHOLE = [order for order in ORDERS if order.is_integer()]


def step(noise: float, rate: float, records: int = 1) -> DpSgd:
    return DpSgd(noise_multiplier=noise, sample_rate=rate, steps=1, records_per_unit=records)


def at(release: Mechanism, order: float) -> float:
    return float(rdp.of(release)[ORDERS.index(order)])


def test_the_orders_are_those_of_dp_accounting() -> None:
    assert list(ORDERS) == DEFAULT_RDP_ORDERS


@pytest.mark.parametrize(
    ("noise", "rate"), [(1.0, 0.1), (3.0, 0.01), (0.4, 0.3), (8.0, 0.5), (50.0, 0.001), (0.7, 1e-5), (0.05, 0.1)]
)
def test_whole_orders_are_the_exact_series(noise: float, rate: float) -> None:
    """Mironov, Talwar & Zhang 2019, equation 6: a finite sum for whole orders."""
    series = RdpAccountant(WHOLE).compose(step(noise, rate).event())._rdp
    for order, exact in zip(WHOLE, series, strict=True):
        found = at(step(noise, rate), order)
        assert found == math.inf or exact - 1e-13 <= found <= exact * (1 + 1e-7) + 1e-12


@pytest.mark.parametrize(("noise", "rate"), [(1.0, 0.1), (0.6, 0.01), (5.0, 0.3)])
def test_broken_orders_agree_with_opacus(noise: float, rate: float) -> None:
    for order in (1.5, 2.7, 6.3, 10.9):
        other = float(opacus.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=order))
        if math.isfinite(other):
            assert at(step(noise, rate), order) == pytest.approx(other, rel=1e-6, abs=1e-10)


@pytest.mark.parametrize(("noise", "rate", "records"), [(2.0, 0.1, 3), (5.0, 0.03, 16), (0.8, 0.5, 2), (4.0, 0.9, 8)])
def test_several_records_are_integrated_in_both_directions(noise: float, rate: float, records: int) -> None:
    """On a grid eight times as fine."""
    weights = np.array([math.comb(records, k) * rate**k * (1 - rate) ** (records - k) for k in range(records + 1)])
    for order in (1.5, 4.0, 16.0, 63.0):
        reach = order * records + 15 * noise
        x = np.linspace(-reach, reach, round(2 * reach / (min(noise, noise**2) / 32)))
        shifts = np.arange(records + 1)[:, None]
        without = -(x**2) / (2 * noise**2)
        drawn = logsumexp(np.log(weights)[:, None] - (x - shifts) ** 2 / (2 * noise**2), axis=0)
        scale = math.log(noise * math.sqrt(2 * math.pi)) - math.log(x[1] - x[0])
        exact = max(
            float(logsumexp(order * one + (1 - order) * other)) - scale
            for one, other in ((drawn, without), (without, drawn))
        ) / (order - 1)
        found = at(step(noise, rate, records), order)
        assert exact - 1e-12 <= found <= exact * (1 + 1e-6) + 1e-12


def test_several_records_cost_no_more_than_if_all_were_drawn_whenever_one_is() -> None:
    several = step(4.5, 0.1, 3)
    together = RdpAccountant(WHOLE).compose(several.looser_event())._rdp
    assert all(at(several, order) <= bound for order, bound in zip(WHOLE, together, strict=True))
    # By much: this is what a lifetime limit for persons counts.
    assert rdp.epsilon(50 * rdp.of(several), 1e-5) < 2.2
    assert rdp.epsilon(50 * np.array([np.interp(o, WHOLE, together) for o in ORDERS]), 1e-5) > 7


def test_the_gaussian_mechanism_is_exact() -> None:
    assert rdp.of(Gaussian(noise_multiplier=2.0)) == pytest.approx([order / 8 for order in ORDERS], rel=1e-15)
    counts = rdp.of(NoisyCounts(noise=3.0, records_per_unit=2))
    assert counts == pytest.approx([order * 8 / 18 for order in ORDERS], rel=1e-14)


def test_fixed_cohorts_are_those_of_the_published_theorem() -> None:
    """Wang, Balle & Kasiviswanathan 2019, theorem 27, in exact arithmetic at orders 2 and 3."""
    noise, q = 4.0, 0.05
    release = ClientLevel(noise_multiplier=noise, cohort="fixed", size=50, of=1000)
    base = (2 / noise) ** 2 / 2  # divergence over order of one whole round
    second = q**2 * min(4 * math.expm1(2 * base), 2 * math.exp(2 * base))
    assert at(release, 2.0) == pytest.approx(math.log1p(second), rel=1e-6)

    def forward(n: int) -> float:
        return sum((-1) ** i * math.comb(n, i) * math.exp((n - i - 1) * (n - i) * base) for i in range(n + 1))

    third = q**3 * min(4 * math.sqrt(forward(2) * forward(4)), 2 * math.exp(2 * 3 * base))
    assert at(release, 3.0) == pytest.approx(math.log1p(3 * second + third) / 2, rel=1e-6)


@pytest.mark.parametrize("noise", [1e-300, 1e-4, 1e-3, 0.01, 2.0**20, 1e300])
@pytest.mark.parametrize("rate", [1e-300, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("records", [1, 5])
def test_absurd_noise_has_a_bound_at_every_order(noise: float, rate: float, records: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rdp.of(step(noise, rate, records))
    assert not np.isnan(found).any()
    assert (found >= 0).all()


def test_a_divergence_grows_with_its_order() -> None:
    for release in (step(0.05, 0.1), step(1.0, 0.1), ClientLevel(noise_multiplier=2, cohort="fixed", size=1, of=9)):
        assert (np.diff(np.minimum(rdp.of(release), 1e300)) >= 0).all()


def test_rounding_never_makes_a_divergence_zero() -> None:
    """The series of this step ends at about -1e-16, and a million such steps are no free lunch."""
    assert (rdp.of(step(1e6, 0.01)) > 0).all()


def test_conversion_there_and_back() -> None:
    """Canonne, Kamath & Steinke 2020, proposition 12."""
    for order in (1.5, 8.0, 63.0):
        for epsilon in (0.1, 1.0, 8.0):
            divergence = rdp.divergence_for(order, epsilon, 1e-5)
            assert rdp.epsilon_for(order, divergence, 1e-5) == pytest.approx(epsilon, rel=1e-12)
            # The proposition's own form: delta = exp((a - 1)(r - eps)) / (a - 1) (1 - 1/a)^a
            delta = math.exp((order - 1) * (divergence - epsilon)) / (order - 1) * (1 - 1 / order) ** order
            assert delta == pytest.approx(1e-5, rel=1e-9)


def test_epsilon_and_delta_are_inverse() -> None:
    total = 100 * rdp.of(step(1.0, 0.05))
    epsilon = rdp.epsilon(total, 1e-5)
    assert rdp.delta(total, epsilon) == pytest.approx(1e-5, rel=1e-6)
    assert rdp.delta(total, math.inf) == 0.0


@dataclass(frozen=True, kw_only=True)
class _Coin(Mechanism):
    name = "test-coin"

    def event(self) -> dp_event.DpEvent:
        return dp_event.RandomizedResponseDpEvent(0.5, 2)

    def describe(self) -> str:
        return "a coin"


def test_what_no_accountant_can_price_is_an_error() -> None:
    with pytest.raises(UnpricedError, match="'a coin' can't be priced for its neighbours, ADD_OR_REMOVE_ONE"):
        rdp.of(_Coin())


def test_ordinary_parameters_raise_no_alarm_in_the_library(caplog: pytest.LogCaptureFixture) -> None:
    cohorts = ClientLevel(noise_multiplier=4.0, cohort="fixed", size=3, of=1000)
    for release in (step(1.0, 0.1), step(1e6, 0.01), cohorts):
        rdp.epsilon(7 * rdp.of(release), 1e-5)
    assert not caplog.records
