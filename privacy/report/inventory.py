"""The report's lists: what was released and charged, who refused or failed, what the books and their owners say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from privacy.report.facts import Charged, FieldKind, Head, Incident, Parameter, Released, StatementFacts
from privacy.report.figures import UnknownReleaseError, cost, counts_of, finite
from privacy.report.verdicts import natural
from privacy.report.views import ChargeView, LedgerView, StatementView

# What a client says before it touches data; all else is a fault.
_REFUSAL = re.compile(r"(budget-exhausted|plan-mismatch|model-mismatch|ledger-closed|reply-gone|site-data|policy-.*)")

_KINDS: tuple[FieldKind, ...] = ("charged", "unprotected", "entrusted", "public", "refused")

_PARAMETERS = (
    "privacy.unit",
    "privacy.trust",
    "privacy.epsilon",
    "privacy.delta",
    "privacy.noise_multiplier",
    "privacy.clipping_norm",
    "privacy.clipping",
    "privacy.adaptive.quantile",
    "privacy.adaptive.rate",
    "privacy.adaptive.count_noise",
    "privacy.adaptive.least_norm",
    "privacy.adaptive.most_norm",
    "privacy.correlated.band",
    "privacy.correlated.separation",
    "privacy.correlated.participations",
    "privacy.correlated.factorisation",
    "privacy.budget",
    "privacy.noise",
    "training.sample_rate",
    "training.steps",
    "training.expected_batch_size",
    "training.dp_engine",
    "training.precision",
    "federation.rounds",
    "federation.cohort.sampling",
    "federation.cohort.size",
    "federation.cohort.rate",
    "federation.population",
    "federation.weighting",
    "secure_sum.clients",
    "secure_sum.honest",
    "secure_sum.corrupt",
    "secure_sum.noise",
    "secure_sum.noise_share",
    "secure_sum.grid",
    "secure_sum.bits",
    "secure_sum.spare_rounds",
    "secure_sum.masks",
    "data.name",
    "data.person_column",
    "data.max_rows_per_person",
    "model.name",
)


_LACKING = (("privacy.noise", "reproducible"), ("privacy.trust", "none"), ("secure_sum.masks", False))
"""Parameters with which there is no claim."""

_PARAMETERS_WITHOUT_PRIVACY = ("privacy.trust", "federation.rounds", "federation.weighting", "data.name", "model.name")


def released_by_ledgers(ledgers: Sequence[LedgerView]) -> list[Released]:
    """Fields that the ledgers recorded, over all clients, and refusals as one more kind."""
    counts: Counter[tuple[str, FieldKind, str | None]] = Counter()
    for view in ledgers:
        for one in view.fields:
            counts[one.name, one.kind, one.receiver] += one.count
    found = [
        Released(name=name, kind=kind, count=count, receiver=receiver)
        for (name, kind, receiver), count in counts.items()
    ]
    refused = sum(1 for view in ledgers for charge in view.charges if charge.status == "refused")
    if refused:
        found.append(Released(name="reply", kind="refused", count=refused))
    return sorted(found, key=lambda one: (_KINDS.index(one.kind), one.name, one.receiver or ""))


def released_by_plan(plan: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Released]:
    """What leaves by the protocol, where no ledger recorded it: one update a round with numbers beside it, and counts
    where clients judge the model, of which nobody kept how often they came."""
    if _at(plan, "privacy.trust") == "central":
        return [Released(name="model", kind="charged", count=None, recorded=False), *entrusted(plan)]
    sent = sum(int(row["rounds"]) for row in rows)
    judged = _at(plan, "evaluation.where") == "clients"
    often = None if judged else sent
    fields: list[tuple[str, FieldKind, int | None]]
    if _at(plan, "privacy.trust") == "none":
        counted: FieldKind = "unprotected" if _at(plan, "federation.weighting") == "examples" else "public"
        fields = [("arrays", "unprotected", sent), ("num-examples", counted, sent), ("train-loss", "unprotected", sent)]
    else:
        fields = [("arrays", "charged", sent), ("num-examples", "public", sent)]
        fields += [(name, "public", often) for name in ("epsilon", "ledger.position", "ledger.hash")]
        fields += [(name, "public", None) for name in said_in_secure_sums(plan)]
        opened = sum(len(row.get("unprotected_rounds", ())) for row in rows)
        if opened:
            fields += [(f"metrics.{name}", "unprotected", opened) for name in _at(plan, "privacy.unprotected") or ()]
    if judged:
        kind: FieldKind = "unprotected" if _at(plan, "privacy.trust") == "none" else "charged"
        tables = ("arrays.confusion",) if _at(plan, "evaluation.per_class") else ("metrics.correct", "metrics.total")
        fields += [(name, kind, None) for name in tables]
    found = [Released(name=name, kind=kind, count=count, recorded=False) for name, kind, count in fields]
    refused = sum(int(row["refused"]) for row in rows)
    if refused:
        found.append(Released(name="reply", kind="refused", count=refused, recorded=False))
    return sorted(found, key=lambda one: (_KINDS.index(one.kind), one.name))


def said_in_secure_sums(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields beside the masked update that leave in a secure sum. They are random; no ledger writes them down."""
    return ("config.secure-message",) if _at(plan, "privacy.trust") == "distributed" and _has_masks(plan) else ()


def _has_masks(plan: Mapping[str, Any]) -> bool:
    return _at(plan, "secure_sum.masks") is not False  # runs from before there was the key had


def entrusted(plan: Mapping[str, Any]) -> tuple[Released, ...]:
    """What clients send a server that adds the noise. Their own ledgers write it down; how often is nobody's business
    (rule 3), and the population's ledger, which the report reads, doesn't know."""
    if _at(plan, "privacy.trust") != "central":
        return ()
    server = str(_at(plan, "name") or "?")
    public = ("num-examples", "epsilon", "ledger.position", "ledger.hash")
    return (
        Released(name="arrays", kind="entrusted", count=None, receiver=server, recorded=False),
        *(Released(name=name, kind="public", count=None, recorded=False) for name in public),
    )


def charged_by_ledgers(
    books: Mapping[str, Sequence[ChargeView]], deltas: Mapping[tuple[str, str], float]
) -> list[Charged]:
    """Mechanisms charged, by balance and phase; `deltas` of each balance."""
    totals: Counter[tuple[str, str, str, str]] = Counter()
    most: dict[tuple[str, str, str, str], int] = {}
    texts: dict[int, str] = {}  # views share their releases: the text of each is written once
    for charges in books.values():
        own: Counter[tuple[str, str, str, str]] = Counter()
        for charge in charges:
            if charge.status == "refused" or charge.unit is None or charge.trust is None:
                continue
            for release, count in charge.releases:
                text = texts.setdefault(id(release), json.dumps(dict(release), sort_keys=True))
                own[text, charge.phase, charge.unit, charge.trust] += count
        totals.update(own)
        for key, count in own.items():
            most[key] = max(most.get(key, 0), count)
    found = [_charged(key, most[key], total, deltas) for key, total in sorted(totals.items())]
    return sorted(found, key=lambda one: (one.unit, one.trust, one.mechanism))


def _charged(key: tuple[str, str, str, str], most: int, total: int, deltas: Mapping[tuple[str, str], float]) -> Charged:
    text, phase, unit, trust = key
    release = json.loads(text)
    delta = deltas.get((unit, trust), 1e-5)
    line, epsilon = text, None
    try:
        counts = counts_of(((release, most),))
        line, epsilon = next(iter(counts)).describe(), finite(cost(counts, delta).epsilon)
    except UnknownReleaseError:
        pass
    return Charged(
        mechanism=str(release.pop("mechanism", "?")),
        parameters=release,
        text=line,
        unit=unit,
        trust=trust,
        phase=phase,
        most=most,
        total=total,
        epsilon=epsilon,
        delta=delta,
    )


def incidents(faults: Iterable[Mapping[str, Any]], books: Mapping[str, Sequence[ChargeView]]) -> tuple[Incident, ...]:
    """Refusals and faults by client and reason, from the server's list and the ledgers'."""
    found: dict[tuple[Literal["refused", "fault"], str, str], set[int]] = {}
    for fault in faults:
        reason = str(fault["reason"])
        kind: Literal["refused", "fault"] = "refused" if _REFUSAL.fullmatch(reason) else "fault"
        found.setdefault((kind, reason, str(fault["client"])), set()).add(int(fault["round"]))
    for client, charges in books.items():
        for charge in charges:
            if charge.status == "refused" or charge.reason is not None:
                kind = "refused" if charge.status == "refused" else "fault"
                found.setdefault((kind, charge.reason or "?", client), set()).add(charge.round)
    return tuple(
        Incident(kind=kind, reason=reason, client=client, rounds=tuple(sorted(rounds)))
        for (kind, reason, client), rounds in sorted(found.items(), key=lambda item: (item[0][:2], natural(item[0][2])))
    )


def parameters(plan: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Constants of the plan that the figures rest on, as the plan's digest pins them.

    Without privacy only those that say what was run: noise and clipping are keys of the plan, but did nothing.
    """
    found = []
    private, of_clients = _at(plan, "privacy.trust") != "none", _at(plan, "privacy.unit") == "client"
    for key in _PARAMETERS if private else _PARAMETERS_WITHOUT_PRIVACY:
        value = _at(plan, key)
        if value is None or (of_clients and key.startswith("training.")):  # how a client trains is its own business
            continue
        lacking = (key, value) in _LACKING
        text = f"{value:g}" if isinstance(value, float) else str(value)
        found.append(Parameter(key=key, value=text, status="not-met" if lacking else "met"))
    return tuple(found)


def statements(views: Sequence[StatementView]) -> tuple[StatementFacts, ...]:
    """As the owners signed them."""
    facts = [
        StatementFacts(
            client=view.client,
            owner=view.owner,
            position=view.position,
            hash=view.hash,
            time=view.time,
            detail=view.detail,
            verified=view.verified,
            problem=view.problem,
        )
        for view in views
    ]
    return tuple(sorted(facts, key=lambda one: (natural(one.client), one.position)))


def heads(ledgers: Sequence[LedgerView]) -> tuple[Head, ...]:
    """The ledgers' newest entries."""
    facts = [
        Head(
            client=view.client,
            position=view.position,
            hash=view.hash,
            policy=view.policy,
            verified=view.verified,
            problems=view.problems,
        )
        for view in ledgers
    ]
    return tuple(sorted(facts, key=lambda one: natural(one.client)))


def unit_code(text: str) -> str:
    """The balance's unit behind a summary's words: "record, not person" is "record".

    A unit that isn't known stays as it is.
    """
    match = re.match(r"person, at most (\d+) record", text)
    if match is not None:
        return f"person:{match[1]}"
    return "record" if text.startswith("record") else "client" if text.startswith("client") else text


def _at(plan: Mapping[str, Any], key: str) -> Any:
    found: Any = plan
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
