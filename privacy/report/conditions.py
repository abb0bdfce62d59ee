"""What a claim needs, assumes and doesn't cover, as codes: from the summary's remarks and from the ledgers.

A code names a condition. One that this version doesn't know keeps the summary's own sentence: nothing that weakens a
claim is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from privacy.report.facts import Condition, ConditionStatus
from privacy.report.views import LedgerView, StatementView

CODES = frozenset(
    {
        "public-constants",
        "plan-pinned",
        "planned-rounds-claimed",
        "deployed",
        "secret-noise",
        "masked",
        "float32",
        "own-code",
        "priced",
        "privacy",
        "no-client-failed",
        "nothing-unprotected",
        "entrusted",
        "server-trusted",
        "cohort-secret",
        "participation-schema",
        "honest-clients",
        "secure-sum",
        "cryptography",
        "participation",
        "membership",
        "person-bounded",
        "record-not-person",
        "several-clients",
        "batch-independence",
        "noise-testimony",
        "stated",
        "statements-verified",
        "statements-match",
        "ledgers-verified",
        "ledgers-grow",
        "no-gap",
        "books-agree",
        "selection",
        "selection-charged",
        "selection-uncharged",
        "timing",
        "baselines",
        "client-names",
        "normalisation",
        "pretrained",
        "evaluation-data",
        "test-records-best",
        "test-records-stop",
        "audited",
    }
)
"""The conditions that this version has words for."""

SIMULATION = frozenset({"deployed", "secret-noise", "masked"})
"""Where nothing but these is not met, the figures are those that a deployment would have, and are no claim."""

BATCH_INFLUENCE = {"most": "3.2e-4", "mostly": "1e-5"}
"""How far rounding moved an example's clipped gradient with the rest of its batch, as part of the clipping norm: the
largest that was seen in any trial, and what more than 99 of 100 stayed below. `simulations.benchmarks.batch_influence`
measures it."""

# Summaries of early versions held sentences without codes. They were all of simulations.
_EARLY = {"simulated, not a claim": "deployed", "the noise follows from the plan's seed": "secret-noise"}


def recognise(remark: Mapping[str, Any] | str, status: ConditionStatus) -> Condition:
    """The condition behind one remark of a summary; of a summary without codes, one sentence."""
    if isinstance(remark, str):
        code = next((code for start, code in _EARLY.items() if remark.startswith(start)), "other")
        return Condition(code=code, status=status, text=remark if code == "other" else None)
    code = str(remark["code"])
    return Condition(
        code=code,
        status=status,
        values=dict(remark.get("values", {})),
        clients=tuple(remark.get("clients", ())),
        text=None if code in CODES else str(remark["text"]),
    )


_TESTIMONY = Condition(code="noise-testimony", status="assumed")
_BATCHES = Condition(code="batch-independence", status="assumed", values=BATCH_INFLUENCE)


def assumed_for(unit: str, trust: str = "") -> tuple[Condition, ...]:
    """What every private figure rests on, whatever it was read from.

    Args:
        unit: what is protected. A client is, whatever its records do to each other.
        trust: where the noise comes from: of a server's own the sites testify nothing.
    """
    if trust == "central":
        return ()
    return (_TESTIMONY,) if unit.startswith("client") else (_TESTIMONY, _BATCHES)


def of_run(plan: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Condition]:
    """What the plan and the summary of a private run say."""
    privacy, stopped = summary["privacy"], summary["stopped"]
    deployed = summary.get("setting") == "deployment"
    lacking = [recognise(remark, "not-met") for remark in privacy.get("withdrawn", ())]
    assumed = [recognise(remark, "assumed") for remark in privacy.get("assumptions", ())]
    beyond = [recognise(remark, "outside") for remark in privacy.get("disclosed", ())]
    named = {condition.code for condition in (*lacking, *assumed, *beyond)}
    planned = str(_at(plan, "federation", "rounds", default=""))
    kept = [
        Condition(code="public-constants", status="met"),
        Condition(code="planned-rounds-claimed", status="met", values={"rounds": planned})
        if stopped in ("target", "plateau", "failed")
        else Condition(code="plan-pinned", status="met"),
        # Nothing but the word of who led the run makes it a deployment.
        Condition(code="deployed", status="met" if deployed else "not-met"),
        *(Condition(code=code, status="met") for code in ("secret-noise", "own-code", "priced", "no-client-failed")),
        *_person(str(privacy.get("unit"))),
        *assumed_for(str(privacy.get("unit")), str(privacy.get("trust"))),
    ]
    if deployed:
        kept += [Condition(code=code, status="met") for code in ("nothing-unprotected", "stated", "ledgers-grow")]
    if privacy.get("selection") in ("public", "charged"):
        kept.append(Condition(code="selection", status="met"))
    if privacy.get("trust") == "central":
        kept.append(Condition(code="server-trusted", status="unchecked"))
        secret = _at(plan, "federation", "cohort", "sampling") in ("poisson", "fixed")
        if secret and _at(plan, "privacy", "correlated") is None:
            kept.append(Condition(code="cohort-secret", status="unchecked"))
    if privacy.get("trust") == "distributed":
        kept.append(Condition(code="masked", status="met"))
    if privacy.get("trust") == "distributed" and "secure-sum" not in named:
        kept.append(Condition(code="honest-clients", status="unchecked"))
    return [*lacking, *(one for one in kept if one.code not in named), *assumed, *beyond]


def _person(unit: str) -> tuple[Condition, ...]:
    if unit.startswith("client"):
        return ()
    if unit.startswith("record"):
        return (Condition(code="record-not-person", status="assumed"),)
    return (Condition(code="person-bounded", status="met"),)


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
    signed = _over("statements-verified", false, unchecked, bool(unchecked))
    return [signed, _over("statements-match", strange)] if ledgers else [signed]


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


_WORST_FIRST: tuple[ConditionStatus, ...] = ("not-met", "unchecked", "assumed", "outside", "met")


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
