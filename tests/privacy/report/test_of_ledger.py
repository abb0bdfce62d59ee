"""A site's own ledger: one balance a unit and trust, over all plans, with the filter's claim and no other."""

from __future__ import annotations

from collections import Counter

import pytest

from privacy import accountant
from privacy.lifetime import Account, Limit, PlanAccount
from privacy.report import FieldView, LedgerView, facts_of_ledger
from tests.privacy.report import examples
from tests.privacy.report.examples import DELTA, ROUND, balance, charge, ledger


def test_each_balance_has_the_claim_of_its_filter() -> None:
    facts = facts_of_ledger(**examples.lifetime())
    found = {one.basis.unit: one for one in facts.balances}
    assert facts.status == "stands"
    assert facts.plan is None
    assert found["record"].verdict.epsilon == 12.0
    assert found["record"].accounts[0].lifetime is not None
    assert found["record"].accounts[0].lifetime.proof == "rdp-filter"
    assert found["person:5"].basis.trust == "distributed"
    assert {one.who: one.outcome for one in found["person:5"].coalitions}["server-and-clients"] == "depends"


def test_a_running_epsilon_is_not_shown_but_the_part_of_the_limit_is() -> None:
    limit = examples.LIMIT
    facts = facts_of_ledger(name="x", ledgers=[ledger("a", 9)])
    (one,) = facts.balances
    assert (one.axis, one.measure) == ("charge", "fraction")
    for point in one.paths[0].points:
        account = PlanAccount(plan="x", proof="filter", envelope=None, charged=((ROUND, point.at),), delta=DELTA)
        assert point.value == pytest.approx(limit.spent(Account(plans=(account,))).fraction)
    assert one.curve == ()
    assert one.meaning is not None
    assert one.meaning.source == "pair"


def test_a_dedicated_budget_is_used_as_its_charges_cost() -> None:
    view = ledger("a", 4, balances=(balance({ROUND: 4}, proof="dedicated-plan", spent_epsilon=2.0, epsilon=2.0),))
    (one,) = facts_of_ledger(name="x", ledgers=[view]).balances
    assert one.paths[0].points[-1].value == accountant.epsilon({ROUND: 4}, DELTA).epsilon / 2.0


def test_a_sum_of_plans_counts_each_plan_whole_from_its_first_charge() -> None:
    plans = ("aa" * 32, "bb" * 32)
    charges = tuple(charge(number, plan=plan) for plan in plans for number in (1, 2, 3))
    shares = tuple(
        examples.PlanView(plan=plan, proof="plan", epsilon=epsilon, delta=DELTA)
        for plan, epsilon in zip(plans, (1.0, 2.0), strict=True)
    )
    known = balance({}, proof="sum-of-plans", filter="sum", epsilon=4.0, delta=1e-3, spent_epsilon=3.0, plans=shares)
    (one,) = facts_of_ledger(name="x", ledgers=[ledger("a", 0, charges=charges, balances=(known,))]).balances
    assert [(point.at, point.value) for point in one.paths[0].points] == [(1, 0.25), (4, 0.75), (6, 0.75)]
    lifetime = one.accounts[0].lifetime
    assert lifetime is not None
    assert [(share.charges, share.epsilon) for share in lifetime.plans] == [(3, 1.0), (3, 2.0)]


@pytest.mark.parametrize("withdrawn", [{"withdrawn": True}, {"verified": False}])
def test_a_gap_or_damage_withdraws_the_claim(withdrawn: dict[str, bool]) -> None:
    facts = facts_of_ledger(name="x", ledgers=[ledger("a", 3, **withdrawn)])
    assert facts.status == "withdrawn"
    assert facts.balances[0].accounts[0].withdrawn


def test_unprotected_values_without_any_charge_protect_nobody() -> None:
    fields = (FieldView(name="arrays", kind="unprotected", count=3),)
    view = LedgerView(client="a", charges=(charge(1, None),), fields=fields)
    assert facts_of_ledger(name="x", ledgers=[view]).status == "none"


def test_an_empty_ledger_says_so() -> None:
    assert facts_of_ledger(name="x", ledgers=[LedgerView(client="a", charges=())]).status == "empty"
    assert facts_of_ledger(name="x", ledgers=[]).status == "empty"


def test_balances_of_unlike_delta_do_not_share_a_table() -> None:
    views = [ledger("a", 1), ledger("b", 1, balances=(balance({ROUND: 1}, spent_delta=1e-6, delta=1e-6),))]
    facts = facts_of_ledger(name="x", ledgers=views)
    assert sorted(one.basis.delta for one in facts.balances) == [1e-6, 1e-5]


def test_limits_are_those_that_privacy_lifetime_keeps() -> None:
    # What the adapter passes on is what Limit.spent says; the report's own path must end there.
    limit = Limit(epsilon=5.0, delta=DELTA)
    account = Account(
        plans=(PlanAccount(plan="aa" * 32, proof="filter", envelope=None, charged=((ROUND, 7),), delta=DELTA),)
    )
    spent = limit.spent(account)
    known = balance(
        Counter({ROUND: 7}),
        spent_epsilon=spent.epsilon,
        proof=spent.proof,
        accountant=spent.accountant,
        fraction=spent.fraction,
        epsilon=limit.epsilon,
        delta=limit.delta,
    )
    (one,) = facts_of_ledger(name="x", ledgers=[ledger("a", 7, balances=(known,))]).balances
    assert one.paths[0].points[-1].value == pytest.approx(spent.fraction)
