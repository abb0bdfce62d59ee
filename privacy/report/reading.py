"""Views of what lies on disk: a ledger's scopes and signed statements, for the reports made of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from privacy import accountant
from privacy.ledger import Entry, Ledger, LedgerError, Snapshot, Task
from privacy.lifetime import Account, Balance, PlanAccount
from privacy.report.views import BalanceView, ChargeView, FieldView, LedgerView, PlanView, ReleaseCounts, StatementView
from privacy.statement import understated, verify_statement
from security.errors import UsageError
from security.identity import fingerprint


def ledger_views(path: Path) -> tuple[LedgerView, ...]:
    """Every scope of a ledger, its chain verified on the way. A scope that is damaged says so and claims nothing.

    Raises:
        LedgerError: the file can't be read at all.
    """
    with Ledger.open(path, read_only=True) as ledger:
        return tuple(_scope(ledger, scope) for scope in ledger.scopes())


def statement_view(client: str, text: str, *, owner: str | None = None) -> StatementView:
    """A statement, verified or with what is wrong.

    Args:
        client: whose it should be.
        text: as it was signed.
        owner: public key that must have signed it; None for any.
    """
    try:
        found = verify_statement(text, owner=owner)
    except UsageError as error:
        return StatementView(
            client=client, owner="", position=-1, hash="", time="", detail="", verified=False, problem=str(error)
        )
    low = understated(found)
    problem = "the epsilon is smaller than what the listed charges cost" if low else None
    return StatementView(
        client=client,
        owner=fingerprint(found.owner),
        position=found.anchor.position,
        hash=found.anchor.hash,
        time=found.time,
        detail=found.detail,
        verified=not low,
        problem=problem,
    )


def _scope(ledger: Ledger, scope: str) -> LedgerView:
    try:
        entries = ledger.verified_entries(scope)
        snapshot = ledger.snapshot(scope)
    except LedgerError as error:
        return LedgerView(client=scope, charges=(), verified=False, problems=(str(error),))
    units = {balance: _unit(balance, account) for balance, account in snapshot.accounts.items()}
    charges = [
        view if view.unit is None else replace(view, unit=units[Balance(unit=view.unit, trust=view.trust or "")])
        for view in _charges(entries, ledger.task_ids(scope))
    ]
    return LedgerView(
        client=scope,
        charges=tuple(charges),
        balances=tuple(replace(_balance(snapshot, balance), unit=unit) for balance, unit in units.items()),
        fields=_fields(entries),
        position=snapshot.head.position,
        hash=snapshot.head.hash,
        policy=snapshot.policy or "",
        verified=True,
        withdrawn=snapshot.withdrawn,
    )


def _unit(balance: Balance, account: Account) -> str:
    """What a balance is about, with the most records of a person that anything charged to it is priced for."""
    if balance.unit != "person":
        return balance.unit
    priced = (release for plan in account.plans for release, _ in (*plan.charged, *(plan.envelope or ())))
    return f"person:{max((getattr(release, 'records_per_unit', 1) for release in priced), default=1)}"


def _charges(entries: Iterable[Entry], tasks: Mapping[int, str]) -> tuple[ChargeView, ...]:
    """One view a task, in the order of the chain; recovered charges have no task, and stand where they were entered."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        body = entry.body
        if entry.kind == "reserve":
            found[tasks[entry.position]] = _view(entry, "reserved") | _charged(body["charge"])
        elif entry.kind == "commit":
            found[body["task"]]["status"] = "committed"
        elif entry.kind == "refuse":
            own = found.setdefault(Task.from_json(body["task"]).id, _view(entry, "refused"))
            own["reason"] = body["reason"]
        elif entry.kind == "recover":
            for number, charge in enumerate(body["charges"]):
                own = {"round": 0, "plan": charge["plan"], "phase": "recovered", "time": entry.time}
                found[f"{entry.position}.{number}"] = own | {"status": "reserved"} | _charged(charge)
    return tuple(ChargeView(**view) for view in found.values())


def _view(entry: Entry, status: str) -> dict[str, Any]:
    task = entry.body["task"]
    plan = entry.body.get("plan") or ""
    return {"round": task["round"], "plan": plan, "phase": task["phase"], "time": entry.time, "status": status}


def _charged(charge: Mapping[str, Any] | None) -> dict[str, Any]:
    if charge is None:
        return {}
    balance = charge["balance"]
    releases: ReleaseCounts = tuple((release, count) for release, count in charge["releases"])
    return {"unit": balance["unit"], "trust": balance["trust"], "releases": releases}


def _fields(entries: Iterable[Entry]) -> tuple[FieldView, ...]:
    left: Counter[tuple[str, Any]] = Counter()
    receivers: dict[str, str] = {}
    federation = ""
    for entry in entries:
        if entry.kind == "reserve":
            federation = entry.body["task"]["federation"]
        elif entry.kind == "commit":
            for name, kind in entry.body["fields"].items():
                left[name, kind] += 1
                if kind == "entrusted":
                    receivers[name] = federation
    return tuple(
        FieldView(name=name, kind=kind, count=count, receiver=receivers.get(name) if kind == "entrusted" else None)
        for (name, kind), count in left.items()
    )


def _balance(snapshot: Snapshot, balance: Balance) -> BalanceView:
    account, limit = snapshot.accounts[balance], snapshot.limits.get(balance)
    if limit is None:  # all of it was recovered: no policy has limited it since
        return _unlimited(balance, account)
    spent = limit.spent(account)
    return BalanceView(
        unit=balance.unit,
        trust=balance.trust,
        spent_epsilon=_finite(spent.epsilon),
        spent_delta=spent.delta,
        proof=spent.proof,
        accountant=spent.accountant,
        relation=spent.relation,
        charged_epsilon=_finite(spent.charged_epsilon),
        fraction=spent.fraction,
        epsilon=limit.epsilon,
        delta=limit.delta,
        filter=limit.filter,
        plans=tuple(_plan(plan) for plan in account.plans),
        withdrawn=account.withdrawn,
    )


def _unlimited(balance: Balance, account: Account) -> BalanceView:
    delta = max((plan.delta for plan in account.plans), default=1e-5)
    return BalanceView(
        unit=balance.unit,
        trust=balance.trust,
        spent_epsilon=None,
        spent_delta=delta,
        proof="withdrawn" if account.withdrawn else "nothing-charged",
        accountant="",
        withdrawn=account.withdrawn,
    )


def _plan(plan: PlanAccount) -> PlanView:
    counted = plan.charged if plan.envelope is None else plan.envelope
    spent = accountant.epsilon(dict(counted), plan.delta)
    return PlanView(plan=plan.plan, proof=plan.proof, epsilon=_finite(spent.epsilon), delta=plan.delta)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
