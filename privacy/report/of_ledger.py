"""The facts of a site's own ledger: what the lifetime of its data has cost, over all plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from privacy import accountant
from privacy.lifetime import Limit
from privacy.report import conditions as needs
from privacy.report import figures, inventory
from privacy.report.accounts import AccountFacts, BalanceFacts, Basis, Estimate, Lifetime, Path, PlanShare, Point
from privacy.report.coalitions import coalitions
from privacy.report.facts import Condition, Facts
from privacy.report.figures import Counts, UnknownReleaseError
from privacy.report.verdicts import in_order, verdict, worst
from privacy.report.views import BalanceView, ChargeView, LedgerView, StatementView

_Key = tuple[str, str, str, float]  # unit, trust, relation, delta: what has all in common stands in one table


def facts_of_ledger(
    *,
    name: str,
    ledgers: Sequence[LedgerView],
    statements: Sequence[StatementView] = (),
    versions: Mapping[str, str] | None = None,
    made: str = "",
) -> Facts:
    """The report of a ledger: one account a scope and balance, over all its plans.

    Args:
        name: of the ledger.
        ledgers: its scopes.
        statements: what its owner signed.
        versions: of the software.
        made: when, UTC ISO text.
    """
    found = [
        *needs.of_ledgers(ledgers),
        *needs.of_statements(statements, ledgers),
        Condition(code="timing", status="outside"),
    ]
    books = {view.client: view.charges for view in ledgers}
    keys = list(dict.fromkeys(_key(one) for view in ledgers for one in view.balances))
    found += [one for unit, trust, *_ in keys for one in needs.assumed_for(unit, trust)]
    if any(unit == "record" for unit, *_ in keys):
        found.append(Condition(code="record-not-person", status="assumed"))
    for trust, code in (("central", "server-trusted"), ("distributed", "honest-clients")):
        if any(key[1] == trust for key in keys):
            found.append(Condition(code=code, status="unchecked"))
    unpriced = tuple(view.client for view in ledgers if any(one.spent_epsilon is None for one in view.balances))
    found.append(Condition(code="priced", status="not-met" if unpriced else "met", clients=unpriced))
    found = needs.merged(found)
    balances = tuple(_balance(key, ledgers, found) for key in sorted(keys))
    exposed = any(one.kind in ("unprotected", "entrusted") for view in ledgers for one in view.fields)
    statuses = [one.verdict.status for one in balances]
    deltas = {(unit, trust): delta for unit, trust, _, delta in keys}
    return Facts(
        kind="ledger",
        name=name,
        made=made,
        status=worst(statuses) if statuses else "none" if exposed else "empty",
        plan=None,
        balances=balances,
        clients=len(ledgers),
        conditions=tuple(found),
        parameters=(),
        selection=None,
        charged=tuple(inventory.charged_by_ledgers(books, deltas)),
        released=tuple(inventory.released_by_ledgers(ledgers)),
        utility=None,
        incidents=inventory.incidents((), books),
        statements=inventory.statements(statements),
        heads=inventory.heads(ledgers),
        versions=dict(versions or {}),
    )


def lifetime_of(one: BalanceView, view: LedgerView) -> Lifetime:
    """A balance of a ledger, with what each plan cost it."""
    own = [charge for charge in view.charges if _is_of(charge, one)]
    shares = []
    for plan in one.plans:
        times = [charge.time for charge in own if charge.plan == plan.plan]
        shares.append(
            PlanShare(
                plan=plan.plan,
                proof=plan.proof,
                charges=len(times),
                epsilon=plan.epsilon,
                delta=plan.delta,
                first=min(times, default=""),
                last=max(times, default=""),
            )
        )
    return Lifetime(
        epsilon=None if one.withdrawn else figures.finite(one.spent_epsilon),
        delta=one.spent_delta,
        limit_epsilon=one.epsilon,
        limit_delta=one.delta,
        filter=one.filter,
        proof=one.proof,
        charged_epsilon=figures.finite(one.charged_epsilon),
        fraction=one.fraction,
        accountant=one.accountant,
        plans=tuple(shares),
    )


def _key(one: BalanceView) -> _Key:
    return one.unit, one.trust, one.relation, one.spent_delta


def _is_of(charge: ChargeView, one: BalanceView) -> bool:
    return charge.status != "refused" and (charge.unit, charge.trust) == (one.unit, one.trust)


def _balance(key: _Key, ledgers: Sequence[LedgerView], known: Sequence[Condition]) -> BalanceFacts:
    pairs = [(view, one) for view in ledgers for one in view.balances if _key(one) == key]
    accounts = in_order(_account(view, one, known) for view, one in pairs)
    top = next(one for one in accounts if one.client == accounts[0].client)
    assert top.lifetime is not None
    unit, trust, relation, delta = key
    basis = Basis(unit=unit, trust=trust, relation=relation, delta=delta, accountant=top.lifetime.accountant)
    found = verdict(accounts, basis, known)
    view, one = next(pair for pair in pairs if pair[0].client == top.client)
    points = _fractions(view, one)
    return BalanceFacts(
        verdict=found,
        basis=basis,
        accounts=accounts,
        axis="charge",
        measure="fraction",
        paths=(Path(which="largest", client=top.client, points=points),) if points else (),
        budget_line=1.0 if one.epsilon is not None else None,
        planned=None,
        planned_epsilon=None,
        curve=(),
        meaning=figures.meaning_of_pair(found.epsilon, delta) if found.epsilon else None,
        estimates=(
            Estimate(accountant=top.lifetime.accountant, epsilon=top.epsilon, claimed=True),
            Estimate(accountant=_priced_by(view, one), epsilon=top.lifetime.charged_epsilon, claimed=False),
        ),
        coalitions=coalitions(trust, unit, _honest([pair[0] for pair in pairs])),
    )


def _priced_by(view: LedgerView, one: BalanceView) -> str:
    """The accountant of what was charged to a balance."""
    try:
        charged = [figures.counts_of(charge.releases) for charge in view.charges if _is_of(charge, one)]
        return accountant.accountant_of({release for counts in charged for release in counts})
    except (UnknownReleaseError, ValueError):
        return accountant.ACCOUNTANT


def _honest(ledgers: Sequence[LedgerView]) -> dict[str, int]:
    try:
        charged = [figures.counts_of(charge.releases) for view in ledgers for charge in view.charges]
    except UnknownReleaseError:
        return {}
    needed = figures.honest(release for counts in charged for release in counts)
    return {"honest": needed} if needed else {}


def _account(view: LedgerView, one: BalanceView, known: Sequence[Condition]) -> AccountFacts:
    lifetime = lifetime_of(one, view)
    own = [charge for charge in view.charges if _is_of(charge, one)]
    return AccountFacts(
        client=view.client,
        epsilon=lifetime.epsilon,
        budget=one.epsilon,
        fraction=one.fraction,
        rounds=sum(1 for charge in own if charge.status == "committed"),
        charged_rounds=len(own),
        open_rounds=sum(1 for charge in own if charge.status == "reserved"),
        refused=sum(1 for charge in view.charges if charge.status == "refused"),
        withdrawn=needs.reasons_of(known, view.client),
        lifetime=lifetime,
    )


def _fractions(view: LedgerView, one: BalanceView) -> tuple[Point, ...]:
    """The part of the limit used after some of the charges, as the balance's own proof counts it."""
    charges = [charge for charge in view.charges if _is_of(charge, one)]
    if one.epsilon is None or one.delta is None or one.filter is None or not charges:
        return ()
    limit = Limit(epsilon=one.epsilon, delta=one.delta, filter=one.filter)
    try:
        history = [figures.counts_of(charge.releases) for charge in charges]
    except UnknownReleaseError:
        return ()
    if one.proof == "sum-of-plans":
        return _fractions_of_plans(charges, one)
    if one.proof not in ("rdp-filter", "dedicated-plan"):
        return ()
    chosen = set(figures.spread(1, len(charges), figures.MOST_POINTS))
    total: Counts = Counter()
    points = []
    for place, counts in enumerate(history, start=1):
        total.update(counts)
        if place in chosen:
            points.append(Point(at=place, value=min(1.0, _fraction(limit, one.proof, total))))
    return tuple(points)


def _fraction(limit: Limit, proof: str, charged: Counts) -> float:
    if proof == "dedicated-plan":
        return figures.cost(charged, limit.delta).epsilon / limit.epsilon
    order, most = limit.order_and_divergence()
    return accountant.renyi(charged, order) / most if most > 0 else 1.0


def _fractions_of_plans(charges: Sequence[ChargeView], one: BalanceView) -> tuple[Point, ...]:
    """A plan's whole envelope counts from its first charge on."""
    shares = {plan.plan: plan for plan in one.plans}
    seen: dict[str, None] = {}
    points = []
    assert one.epsilon is not None
    assert one.delta is not None
    for place, charge in enumerate(charges, start=1):
        new = charge.plan not in seen
        seen[charge.plan] = None
        if new or place == len(charges):
            counted = [shares[plan] for plan in seen if plan in shares]
            epsilon = sum(share.epsilon if share.epsilon is not None else float("inf") for share in counted)
            delta = sum(share.delta for share in counted)
            points.append(Point(at=place, value=min(1.0, max(epsilon / one.epsilon, delta / one.delta))))
    return tuple(points)
