"""What a budget buys, against the accountant asked directly."""

from __future__ import annotations

import math

import pytest

from privacy.accountant import epsilon
from privacy.lifetime import Account, Limit, PlanAccount, Terms, multiset
from privacy.mechanisms import DiscreteGaussianSum, DpSgd, NoisyCounts
from privacy.planning import offers, rounds_admitted

TRAINING = DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=5)
COUNTS = NoisyCounts(noise=10.0)


def test_an_offer_prices_every_release_of_every_round_and_what_was_spent_before() -> None:
    spent = {DpSgd(noise_multiplier=3.0, sample_rate=0.2, steps=7): 2}
    (offer,) = offers(
        TRAINING, noise_multipliers=[2.0], rounds=[1, 8], budget=4.0, delta=1e-5, also={COUNTS: 1}, spent=spent
    )
    own = DpSgd(noise_multiplier=2.0, sample_rate=0.1, steps=5)
    for rounds, found in zip((1, 8), offer.epsilons, strict=True):
        assert found == epsilon({**spent, own: rounds, COUNTS: rounds}, 1e-5).epsilon
    within = epsilon({**spent, own: offer.affordable, COUNTS: offer.affordable}, 1e-5).epsilon
    beyond = epsilon({**spent, own: offer.affordable + 1, COUNTS: offer.affordable + 1}, 1e-5).epsilon
    assert within <= 4.0 < beyond


def test_more_noise_costs_less_and_affords_more() -> None:
    found = offers(TRAINING, noise_multipliers=[0.7, 1.0, 2.0, 4.0], rounds=[10], budget=3.0, delta=1e-5)
    costs = [offer.epsilons[0] for offer in found]
    assert costs == sorted(costs, reverse=True)
    assert all(math.isfinite(cost) for cost in costs)
    assert [offer.affordable for offer in found] == sorted(offer.affordable for offer in found)


def test_a_budget_that_covers_no_round_affords_none() -> None:
    (offer,) = offers(TRAINING, noise_multipliers=[0.5], rounds=[1], budget=0.1, delta=1e-5)
    assert offer.affordable == 0


def test_secure_sums_are_offered_with_shares_for_each_noise() -> None:
    sums = DiscreteGaussianSum(noise_share=1000.0, honest=4, l2_sensitivity=500.0, dimension=100)
    found = offers(sums, noise_multipliers=[1e-4, 2.0, 4.0], rounds=[3, 12], budget=6.0, delta=1e-5)
    assert found[0].epsilons == (math.inf, math.inf)  # so little noise has no price
    assert found[0].affordable == 0
    for offer, share in zip(found[1:], (500.0, 1000.0), strict=True):
        own = DiscreteGaussianSum(noise_share=share, honest=4, l2_sensitivity=500.0, dimension=100)
        assert own.noise_multiplier == offer.noise_multiplier
        assert offer.epsilons == tuple(epsilon({own: rounds}, 1e-5).epsilon for rounds in (3, 12))
        assert epsilon({own: offer.affordable}, 1e-5).epsilon <= 6.0


def terms(rounds: int, plan: str = "a" * 64) -> Terms:
    return Terms(plan=plan, rounds=(multiset([TRAINING]),) * rounds, delta=1e-5)


@pytest.mark.parametrize("played", [3, 10])
def test_an_empty_ledger_lets_through_what_its_budget_covers(played: int) -> None:
    budget = epsilon({TRAINING: played}, 1e-5).epsilon
    assert rounds_admitted(Limit(epsilon=budget, delta=1e-5), Account(), terms(10)) == played


def test_a_balance_that_belongs_to_one_plan_lets_no_other_through() -> None:
    limit = Limit(epsilon=epsilon({TRAINING: 10}, 1e-5).epsilon, delta=1e-5)
    first = limit.admit(Account(), terms(10), multiset([TRAINING]))
    assert first is not None
    assert first.proof == "plan"
    own = PlanAccount(
        plan="a" * 64, proof=first.proof, envelope=first.envelope, charged=multiset([TRAINING]), delta=1e-5
    )
    assert rounds_admitted(limit, Account(plans=(own,)), terms(1, plan="b" * 64)) == 0


def test_a_filter_lets_through_what_is_left_after_other_plans() -> None:
    limit = Limit(epsilon=6.0, delta=1e-5)
    quiet = multiset({DpSgd(noise_multiplier=4.0, sample_rate=0.1, steps=5): 10})
    before = Account(plans=(PlanAccount(plan="b" * 64, proof="filter", envelope=None, charged=quiet, delta=1e-5),))
    fresh, left = rounds_admitted(limit, Account(), terms(500)), rounds_admitted(limit, before, terms(500))
    assert 0 < left < fresh
