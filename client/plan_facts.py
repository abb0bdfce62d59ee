"""What a plan would do at a site: what an owner reads before saying yes. Public facts and the ledger; no data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from client.egress import Disclosure, planned_fields
from client.offers import OfferError, check_site, least_memory
from client.site_settings import DataSettings, SiteSettings
from client.workplace import wanted_device
from privacy.ledger import Ledger, default_anchors
from privacy.lifetime import Account, LifetimeSpent, Limit, PlanAccount, Terms, multiset
from privacy.mechanisms import Release
from privacy.planning import rounds_admitted
from security.homes import SiteHome
from security.secure_sum.parameters import SumParameters
from shared_models.parameters import size_of
from shared_models.plan import Plan
from shared_models.registry import dry


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a plan costs of one budget.

    Attributes:
        limit: the budget.
        before: what other plans have spent.
        after: that, and all of this plan's rounds that the budget lets through.
        rounds: how many those are.
        played: how many releases this plan has charged already.
    """

    limit: Limit
    before: LifetimeSpent
    after: LifetimeSpent
    rounds: int
    played: int


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """What a plan would do at a site.

    Attributes:
        plan: the plan.
        digest: of it.
        federation: whose server offers it.
        cost: of the budget that it charges; None without privacy, or without such a budget.
        releases: what it releases over all its rounds, and how often; empty without privacy. Under distributed trust
            with those that may be charged for repeated attempts.
        secure_sum: whom its secure sums count on, in a whole cohort; None for a plan without any.
        leaves: names of fields by class.
        parameters: how many numbers the network trains.
        memory: bytes that the network takes at least.
        device: where it would compute.
        data: the file that it would train on; None if there is none.
        objection: why the site would refuse it as things stand; None if only the owner's yes is missing.
    """

    plan: Plan
    digest: str
    federation: str
    cost: Cost | None
    releases: Mapping[Release, int]
    secure_sum: SumParameters | None
    leaves: Mapping[Disclosure, tuple[str, ...]]
    parameters: int
    memory: int
    device: str
    data: DataSettings | None
    objection: str | None


def plan_facts(plan: Plan, settings: SiteSettings, home: SiteHome, *, federation: str) -> PlanFacts:
    """What a plan would do at this site, as things stand.

    Raises:
        LedgerError: the ledger can't be relied on.
        UsageError: the plan names no network that is known.
    """
    releases: Counter[Release] = Counter()
    if plan.is_private:
        for round_releases in plan.terms().rounds:
            releases.update(dict(round_releases))
    try:
        check_site(plan, settings, federation=federation)
        objection = None
    except OfferError as error:
        objection = str(error)
    return PlanFacts(
        plan=plan,
        digest=plan.digest(),
        federation=federation,
        cost=_cost(plan, settings, home),
        releases=releases,
        secure_sum=plan.secure_parameters() if plan.privacy.trust == "distributed" else None,
        leaves=_by_class(planned_fields(plan, settings.policy)),
        parameters=size_of(dry(plan)).trained,
        memory=least_memory(plan),
        device=wanted_device(plan, settings.resources.device),
        data=settings.data_for(plan.data.name),
        objection=objection,
    )


def cost(limit: Limit, account: Account, terms: Terms) -> Cost:
    """What all rounds of a plan cost, as far as a budget lets them through.

    Args:
        limit: the budget.
        account: all that was charged to it so far.
        terms: of the plan.
    """
    own = next((entry for entry in account.plans if entry.plan == terms.plan), None)
    others = replace(account, plans=tuple(entry for entry in account.plans if entry is not own))
    rounds = rounds_admitted(limit, others, terms)
    after = others
    if rounds:
        admission = limit.admit(others, terms, terms.rounds[0])
        assert admission is not None  # or no round were let through
        charged: Counter[Release] = Counter()
        for releases in terms.rounds[:rounds]:
            charged.update(dict(releases))
        entry = PlanAccount(
            plan=terms.plan,
            proof=admission.proof,
            envelope=admission.envelope,
            charged=multiset(charged),
            delta=terms.delta,
        )
        after = replace(others, plans=(*others.plans, entry))
    return Cost(
        limit=limit,
        before=limit.spent(others),
        after=limit.spent(after),
        rounds=rounds,
        played=0 if own is None else sum(times for _, times in own.charged),
    )


def account_at(home: SiteHome, scope: str, plan: Plan) -> Account:
    """What was charged so far on the balance that a plan charges; nothing where no ledger has begun.

    Raises:
        LedgerError: the ledger can't be relied on.
    """
    if not home.ledger.exists() and not home.ledger_note.exists():
        return Account()
    with Ledger.open(home.ledger, read_only=True, anchors=default_anchors(home.ledger)) as ledger:
        return ledger.account(scope, plan.balance) if scope in ledger.scopes() else Account()


def _cost(plan: Plan, settings: SiteSettings, home: SiteHome) -> Cost | None:
    budget = settings.budget_for(plan.balance) if plan.is_private else None
    if budget is None:
        return None
    return cost(budget.limit, account_at(home, settings.budget_scope, plan), plan.terms())


def _by_class(fields: Mapping[str, Disclosure]) -> dict[Disclosure, tuple[str, ...]]:
    return {
        kind: names
        for kind in Disclosure
        if (names := tuple(name for name, disclosure in fields.items() if disclosure is kind))
    }
