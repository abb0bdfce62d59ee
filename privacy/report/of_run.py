"""The facts of one run, from its folder's plain data and the clients' ledgers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from privacy.report import conditions as needs
from privacy.report import figures, inventory
from privacy.report.accounts import BalanceFacts
from privacy.report.audited import of_audit
from privacy.report.facts import (
    AuditRow,
    Charged,
    Condition,
    Facts,
    PlanFacts,
    Reconstruction,
    Released,
    Utility,
    UtilityPoint,
)
from privacy.report.run_balance import balance_of
from privacy.report.run_view import Run
from privacy.report.verdicts import worst
from privacy.report.views import LedgerView, StatementView


def facts_of_run(
    *,
    plan: Mapping[str, Any],
    summary: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    ledgers: Sequence[LedgerView] = (),
    statements: Sequence[StatementView] = (),
    audit: Sequence[AuditRow] = (),
    reconstruction: Reconstruction | None = None,
    made: str = "",
) -> Facts:
    """The report of one run.

    Each client's epsilon is the larger of the server's (the summary) and its own ledger's; where the ledger's is larger
    the books don't agree, and its claim is withdrawn.

    Args:
        plan: the resolved plan, as its TOML file reads.
        summary: summary.json.
        metrics: the lines of metrics.jsonl.
        ledgers: one view a client; none if the run has no ledger.
        statements: what owners signed.
        audit: rows of audit.json.
        reconstruction: what the server could have seen, of the same plan.
        made: when, UTC ISO text.

    Raises:
        KeyError: the summary lacks a key of docs/schemas/summary.schema.json.
    """
    privacy = summary["privacy"]
    run = Run(plan=plan, summary=summary, metrics=metrics, ledgers=ledgers)
    protected = privacy["trust"] != "none"
    found = [*needs.of_run(plan, summary)] if protected else [_NO_PRIVACY]
    found += [one for one in needs.of_ledgers(ledgers) if protected or one.code != "nothing-unprotected"]
    found = needs.merged([*found, *needs.of_statements(statements, ledgers), *of_audit(audit)])
    balances: list[BalanceFacts] = []
    if protected:
        for key in run.balances:
            facts, more = balance_of(run, key, found)
            balances.append(facts)
            found = needs.merged([*found, *more])
    return Facts(
        kind="run",
        name=str(summary["name"]),
        made=made,
        status=worst(one.verdict.status for one in balances),
        plan=PlanFacts(
            name=str(summary["name"]),
            digest=str(summary["plan_digest"]),
            rounds=run.planned,
            played=int(summary["rounds"]),
            stopped=summary["stopped"],
            reason=summary["reason"],
        ),
        balances=tuple(balances),
        clients=len(privacy["clients"]),
        conditions=tuple(found),
        parameters=inventory.parameters(plan),
        selection=privacy.get("selection") if protected else None,
        charged=tuple(_charged(run)),
        released=tuple(_released(run)),
        utility=_utility(run),
        incidents=inventory.incidents(summary["faults"], run.books),
        statements=inventory.statements([_as_the_server_found(run, view) for view in statements]),
        heads=inventory.heads(ledgers),
        versions={str(name): str(text) for name, text in summary["versions"].items()},
        audit=tuple(audit),
        reconstruction=reconstruction,
    )


_NO_PRIVACY = Condition(code="privacy", status="not-met")


def _as_the_server_found(run: Run, view: StatementView) -> StatementView:
    """A signature may hold and be a stranger's, or a ledger's that the server knows to be longer."""
    said = str(run.rows.get(view.client, {}).get("statement"))
    problem = said.removeprefix("not verified: ")
    return replace(view, problem=problem) if problem != said and view.problem is None else view


def _charged(run: Run) -> list[Charged]:
    if run.summary["privacy"]["trust"] == "none":
        return []
    found = inventory.charged_by_ledgers(run.books, dict.fromkeys(run.balances, run.delta))
    if found:
        return found
    charged = [run.charged_to(client) for client in run.rows]
    for release, phase in ((run.round_release(), "train"), (run.evaluation_release(), "evaluate")):
        times = [counts[release] for counts in charged] if release is not None else []
        if release is None or not any(times):
            continue
        values = release.to_json()
        found.append(
            Charged(
                mechanism=str(values.pop("mechanism")),
                parameters=values,
                text=release.describe(),
                unit=run.main[0],
                trust=run.main[1],
                phase=phase,
                most=max(times),
                total=sum(times),
                epsilon=figures.finite(figures.cost({release: max(times)}, run.delta).epsilon),
                delta=run.delta,
            )
        )
    return found


def _released(run: Run) -> list[Released]:
    digest = run.summary["plan_digest"]
    own = [replace(view, charges=tuple(one for one in view.charges if one.plan == digest)) for view in run.ledgers]
    recorded = inventory.released_by_ledgers(own)
    if recorded:
        recorded += [
            Released(name=name, kind="public", count=None, recorded=False)
            for name in inventory.said_in_secure_sums(run.plan)
        ]
        recorded += inventory.entrusted(run.plan)
    return recorded or inventory.released_by_plan(run.plan, list(run.rows.values()))


def _utility(run: Run) -> Utility | None:
    metric = str(run.plan.get("evaluation", {}).get("metric", "accuracy"))
    points = tuple(
        UtilityPoint(round=int(line["round"]), value=float(line["evaluation"][metric]), epsilon=line.get("epsilon_max"))
        for line in run.metrics
        if line.get("evaluation") and metric in line["evaluation"]
    )
    final = run.summary.get("final")
    if not points or not final:
        return None
    return Utility(metric=metric, higher_is_better=metric != "loss", points=points, final=dict(final))
