"""What a claim needs and what it doesn't cover, as codes: from the summary's plain sentences and from the ledgers.

A sentence that no pattern knows is kept as it is, under the code "other": nothing that weakens a claim is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from privacy.report.facts import Condition, ConditionStatus
from privacy.report.views import LedgerView, StatementView

# What makes a run a simulation: its figures are those a deployment would have, and are no claim.
SIMULATION = frozenset({"real-noise", "secret-noise"})

_WITHDRAWN = {
    "real-noise": r"simulated, not a claim: .*",
    "secret-noise": r"the noise follows from the plan's seed, .*",
    "no-client-failed": r"failed, which may tell something of their data \(rule 5\): clients (?P<clients>.+)",
    "nothing-unprotected": r"sent unprotected beside private updates \((?P<fields>.*)\): clients (?P<clients>.+)",
    "priced": r"spent too much for an epsilon to be computed: clients (?P<clients>.+)",
    "own-code": r"under Flower's own engine the server brings the code .*",
    "privacy": r"no privacy: .*",
}
_OUTSIDE = {
    "baselines": r"the figures of each client alone and of all data pooled are not protected",
    "timing": r"when a client answers is not protected .*",
    "client-names": r"the names of the clients are values of the column (?P<column>.+) and are not protected",
    "several-clients": r"somebody with records at several clients spends at each of them.*",
    "evaluation-data": r"the server's own evaluation data is not protected .*",
    "test-records-best": r"the reported figures are of the test records that also chose the best model",
    "test-records-stop": r"the reported figures are of the test records that also chose .*and when to stop",
    "selection-uncharged": r"hyper-parameters may have been chosen by looking at the data, uncharged .*",
}


def recognise(text: str, status: ConditionStatus) -> Condition:
    """The condition behind one sentence of a summary."""
    patterns = _WITHDRAWN if status == "not-met" else _OUTSIDE
    for code, pattern in patterns.items():
        match = re.fullmatch(pattern, text)
        if match is not None:
            values = match.groupdict()
            named = values.pop("clients", "")
            return Condition(code=code, status=status, values=values, clients=tuple(named.split(", ")) if named else ())
    return Condition(code="other", status=status, text=text)


def of_run(plan: Mapping[str, Any], privacy: Mapping[str, Any], *, stopped: str | None) -> list[Condition]:
    """What the plan and the summary of a private run say."""
    lacking = [recognise(text, "not-met") for text in privacy.get("withdrawn", ())]
    beyond = [recognise(text, "outside") for text in privacy.get("disclosed", ())]
    named = {condition.code for condition in (*lacking, *beyond)}
    planned = str(_at(plan, "federation", "rounds", default=""))
    kept = [
        Condition(code="public-constants", status="met"),
        Condition(code="planned-rounds-claimed", status="met", values={"rounds": planned})
        if stopped in ("target", "plateau", "failed")
        else Condition(code="plan-pinned", status="met"),
        *(Condition(code=code, status="met") for code in ("real-noise", "secret-noise", "own-code", "priced")),
        Condition(code="no-client-failed", status="met"),
        _person(str(privacy.get("unit"))),
    ]
    if privacy.get("selection") in ("public", "charged"):
        kept.append(Condition(code="selection", status="met"))
    if privacy.get("trust") == "central":
        kept.append(Condition(code="server-trusted", status="unchecked"))
        if _at(plan, "federation", "cohort", "sampling") == "poisson":
            kept.append(Condition(code="cohort-secret", status="unchecked"))
    if privacy.get("trust") == "distributed":
        kept.append(Condition(code="honest-clients", status="unchecked"))
    return [*lacking, *(one for one in kept if one.code not in named), *beyond]


def _person(unit: str) -> Condition:
    if unit.startswith("record"):
        return Condition(code="record-not-person", status="outside")
    return Condition(code="person-bounded", status="met")


def of_ledgers(ledgers: Sequence[LedgerView]) -> list[Condition]:
    """Whether the books can be believed, and whether anything left without a charge (principle 1)."""
    if not ledgers:
        return [Condition(code="ledgers-verified", status="unchecked")]
    damaged = tuple(view.client for view in ledgers if view.verified is False)
    unchecked = tuple(view.client for view in ledgers if view.verified is None)
    gaps = tuple(view.client for view in ledgers if view.withdrawn or any(one.withdrawn for one in view.balances))
    exposed = tuple(view.client for view in ledgers if any(one.kind == "unprotected" for one in view.fields))
    servers = sorted({one.receiver or "?" for view in ledgers for one in view.fields if one.kind == "entrusted"})
    failed = tuple(view.client for view in ledgers if any(one.reason == "client-failed" for one in view.charges))
    found = [
        _over("no-client-failed", failed),
        _over("ledgers-verified", damaged, unchecked if len(unchecked) < len(ledgers) else (), bool(unchecked)),
        _over("no-gap", gaps),
        _over("nothing-unprotected", exposed),
        Condition(code="noise-testimony", status="outside"),
    ]
    if servers:
        found.append(Condition(code="entrusted", status="outside", values={"servers": ", ".join(servers)}))
    return found


def of_statements(statements: Sequence[StatementView], ledgers: Sequence[LedgerView]) -> list[Condition]:
    """Whether what the owners signed holds, and is of these ledgers."""
    if not statements:
        return []
    chains = {view.client: view for view in ledgers}
    strange = tuple(
        sorted({one.client for one in statements if one.client in chains and _lacks(chains[one.client], one)})
    )
    false = tuple(sorted({view.client for view in statements if view.verified is False}))
    unchecked = tuple(sorted({view.client for view in statements if view.verified is None}))
    return [_over("statements-verified", false, unchecked, bool(unchecked)), _over("statements-match", strange)]


def _lacks(ledger: LedgerView, statement: StatementView) -> bool:
    """Whether a signed entry is not in the chain: it was cut off, or written anew."""
    if statement.verified is False:  # what is not signed proves nothing about the chain
        return False
    same_place = statement.position == ledger.position
    return statement.position > ledger.position or (same_place and statement.hash != ledger.hash)


def _over(
    code: str, failing: tuple[str, ...], unchecked: tuple[str, ...] = (), is_unchecked: bool = False
) -> Condition:
    if failing:
        return Condition(code=code, status="not-met", clients=failing)
    return Condition(code=code, status="unchecked" if is_unchecked else "met", clients=unchecked)


def merged(conditions: Sequence[Condition]) -> list[Condition]:
    """Each code once, with the worst that was said of it; what is known only as text stays apart."""
    found: dict[str, Condition] = {}
    for one in conditions:
        key = one.text or one.code
        other = found.get(key, one)
        if _WORST_FIRST.index(one.status) < _WORST_FIRST.index(other.status):
            found[key] = one
        elif one.status == other.status == "not-met" and one.clients and other.clients:
            found[key] = replace(other, clients=tuple(dict.fromkeys((*other.clients, *one.clients))))
        elif one.status == other.status == "not-met" and not one.clients:
            found[key] = one
        else:
            found[key] = other
    return list(found.values())


_WORST_FIRST: tuple[ConditionStatus, ...] = ("not-met", "unchecked", "outside", "met")


def reasons_of(conditions: Sequence[Condition], client: str) -> tuple[str, ...]:
    """Codes of what withdraws this one client's claim."""
    return tuple(one.code for one in conditions if one.status == "not-met" and client in one.clients)


def general(conditions: Sequence[Condition]) -> tuple[str, ...]:
    """Codes of what is not met for everybody."""
    return tuple(one.code for one in conditions if one.status == "not-met" and not one.clients)


def _at(plan: Mapping[str, Any], *keys: str, default: Any = None) -> Any:
    found: Any = plan
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return default if found is None else found
