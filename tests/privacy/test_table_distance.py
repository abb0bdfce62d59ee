"""Rule 9: how far a sampler's table is off, in closed form, and what that costs of delta."""

import math

import numpy as np
import pytest
from scipy.special import ive

from privacy import accountant, rdp
from privacy.accountant import delta_for, epsilon
from privacy.lifetime import Account, Limit, PlanAccount, Terms, multiset
from privacy.mechanisms import DiscreteGaussianSum, FromTables, Gaussian, SkellamSum
from privacy.noise import discrete_gaussian_table, skellam_table
from privacy.table_distance import (
    delta_of_distance,
    discrete_gaussian_distance,
    discrete_gaussian_largest,
    skellam_distance,
    skellam_largest,
)

SHARES = [0.5, 1.0, 3.7, 100.0, 1000.0]
DELTA = 1e-5


@pytest.mark.parametrize("share", SHARES)
def test_the_closed_form_is_the_table_s_own(share: float) -> None:
    """Both noises; that the tables keep what they say is tested with them."""
    gaussian, skellam = discrete_gaussian_table(share), skellam_table(share)
    assert (gaussian.largest, gaussian.distance) == (
        discrete_gaussian_largest(share),
        discrete_gaussian_distance(share),
    )
    assert (skellam.largest, skellam.distance) == (skellam_largest(share), skellam_distance(share))


@pytest.mark.parametrize("share", [0.125, *SHARES, 2.0**13, 2.0**16])
def test_no_distance_matters_to_a_single_draw(share: float) -> None:
    for distance in (discrete_gaussian_distance(share), skellam_distance(share)):
        assert 0 < distance < 1e-32


@pytest.mark.parametrize("share", [0.125, 1.0, 10.0, 30.0])
def test_what_skellam_noise_leaves_out_is_as_rare_as_is_said(share: float) -> None:
    largest = skellam_largest(share)
    chance = ive(np.arange(2 * largest + 100), share**2)  # exp(-v) I_k(v)
    assert 2 * chance[largest + 1 :].sum() <= 2.0**-129
    # And no more is kept than must be: a few values less would not do.
    assert 2 * chance[int(0.95 * largest) - 2 :].sum() > 2.0**-129


def release(kind: type[DiscreteGaussianSum] | type[SkellamSum], **changes: float) -> DiscreteGaussianSum | SkellamSum:
    facts = {"noise_share": 1000.0, "honest": 5, "l2_sensitivity": 1000.0, "dimension": 1000, **changes}
    return kind(**facts)  # type: ignore[arg-type]


KINDS = pytest.mark.parametrize("kind", [DiscreteGaussianSum, SkellamSum])


@KINDS
def test_every_draw_that_the_price_counts_on_is_counted(kind: type[DiscreteGaussianSum]) -> None:
    one = discrete_gaussian_distance(1000.0) if kind is DiscreteGaussianSum else skellam_distance(1000.0)
    found = release(kind)
    assert isinstance(found, FromTables)
    assert found.distance == pytest.approx(5 * 1000 * one, rel=1e-12)
    assert release(kind, releases=20).distance == pytest.approx(20 * found.distance, rel=1e-12)
    assert accountant.distance([found] * 3 + [release(kind, releases=7)]) == pytest.approx(10 * found.distance)
    assert accountant.distance([Gaussian(noise_multiplier=1.0)]) == 0


def far_off(monkeypatch: pytest.MonkeyPatch, distance: float) -> None:
    """As if each sum were that far off: distances of real tables can't be seen in any figure."""
    monkeypatch.setattr(DiscreteGaussianSum, "_draw_distance", lambda self: distance / self.honest / self.dimension)


def fresh(**changes: float) -> DiscreteGaussianSum | SkellamSum:
    """One that no cache has seen."""
    fresh.count += 1  # type: ignore[attr-defined]
    return release(DiscreteGaussianSum, dimension=2000 + fresh.count, **changes)  # type: ignore[attr-defined]


fresh.count = 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("distance", [1e-15, 1e-12, 1e-9])
def test_the_distance_is_taken_out_of_delta(monkeypatch: pytest.MonkeyPatch, distance: float) -> None:
    """(epsilon, delta - t (1 + e^epsilon))-privacy of what is priced is what is claimed, with t over all releases."""
    far_off(monkeypatch, distance)
    sums = {fresh(): 3}
    found = epsilon(sums, DELTA)
    ideal = rdp.divergences(accountant.history(sums))
    slip = 3 * distance * (1 + math.exp(found.epsilon))
    assert rdp.delta(ideal, found.epsilon) + slip <= DELTA * (1 + 1e-9)
    assert found.epsilon >= rdp.epsilon(ideal, DELTA)
    assert found.epsilon == found.rdp_epsilon
    assert delta_for(sums, found.epsilon) == pytest.approx(rdp.delta(ideal, found.epsilon) + slip, rel=1e-9)
    assert delta_for(sums, found.epsilon) <= DELTA * (1 + 1e-9)


def test_a_distance_that_delta_does_not_cover_leaves_no_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    far_off(monkeypatch, 1e-5)
    sums = [fresh()]
    assert epsilon(sums, DELTA).epsilon == math.inf
    assert delta_for(sums, 1000.0) == 1.0


def test_real_tables_cost_next_to_nothing() -> None:
    sums = {release(DiscreteGaussianSum, dimension=10**6, honest=100): 100}
    ideal = rdp.epsilon(rdp.divergences(accountant.history(sums)), DELTA)
    assert ideal < epsilon(sums, DELTA).epsilon <= ideal * (1 + 1e-8)


@pytest.mark.parametrize("epsilon", [0.0, 3.0, 600.0, 1e4])
def test_no_distance_costs_no_delta(epsilon: float) -> None:
    assert delta_of_distance(0.0, epsilon=epsilon) == 0
    assert delta_of_distance(1e-40, epsilon=epsilon) > 0


# --- the lifetime filter -------------------------------------------------------------------------------------------


def account_of(charged: dict[DiscreteGaussianSum | SkellamSum, int]) -> Account:
    own = PlanAccount(plan="a" * 64, proof="filter", envelope=None, charged=multiset(charged), delta=DELTA)
    return Account(plans=(own,))


def test_the_filter_admits_tables_only_as_far_as_it_set_delta_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = Limit(epsilon=8.0, delta=DELTA)
    most = 2.0**-30 * DELTA / (1 + math.exp(8.0))
    far_off(monkeypatch, most / 3.5)
    sums = fresh(noise_share=20_000.0)  # four of them are far below the limit
    terms = Terms(plan="b" * 64, rounds=(multiset([sums]),), delta=DELTA)
    assert limit.admit(account_of({sums: 2}), terms, multiset([sums])) is not None
    assert limit.admit(account_of({sums: 3}), terms, multiset([sums])) is None


def test_a_limit_lowered_later_says_what_the_charges_cost() -> None:
    account = account_of({release(DiscreteGaussianSum): 2})
    low, high = Limit(epsilon=1.0, delta=DELTA), Limit(epsilon=60.0, delta=DELTA)
    assert math.isfinite(low.spent(account).epsilon)
    assert low.spent(account).epsilon > 1.0
    assert high.spent(account).epsilon == math.inf  # e^60 times the distance is more than was set aside


def test_the_filter_keeps_its_promise_with_what_it_set_aside() -> None:
    """B(alpha) is for delta less the part for tables, and both together are delta at most."""
    limit = Limit(epsilon=8.0, delta=DELTA)
    order, most = limit.order_and_divergence()
    assert rdp.epsilon_for(order, most, DELTA * (1 - 2.0**-30)) == pytest.approx(8.0, abs=1e-12)
