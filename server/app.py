"""The Flower ServerApp: the same on every grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server.checkpoint import Checkpoint
from server.claim import Remark
from server.evaluation import TestData, evaluator
from server.federation import Federation, Outcome
from server.observer import Observer, Silent
from server.personal import hand_out
from server.population import put_away
from server.run_folder import RunFolder, write_parameters
from server.statements import WAIT_SECONDS, ask_for_statements, spent_in
from server.summary import summarise
from shared_models.parameters import Layout, get_parameters
from shared_models.plan import Plan
from shared_models.plan_central import is_central
from shared_models.plan_personal import shared_layout
from shared_models.registry import build_for


@dataclass
class ServerJob:
    """What a server needs to lead a run, beside the grid.

    Attributes:
        plan: the resolved plan.
        folder: the run's folder, already created.
        test: the server's own evaluation data, or None.
        observer: is told of each round.
        resume: where to go on from; let go when the run begins.
        attachments: files of others to keep with each checkpoint.
        withdrawn: conditions of a claim that the grid does not meet.
        simulated: whether all clients are in one place, so that nothing is claimed.
        identities: by client id, the Ed25519 public key in hexadecimal of who signs there: of a deployment's sites the
            roster's. Who has none here has no verified statement there, so that nothing is claimed, and takes part in
            no secure sum.
        federation: whose sites take part, as they know it; None for the plan's name, as in a simulation.
        judge_personal: in a simulation: how good the clients' own models are, for the summary.
        begun: monotonic time at which the run began, for the start-up time.
        outcome: how the run ended; set by the app.
    """

    plan: Plan
    folder: RunFolder
    test: TestData | None = None
    observer: Observer = field(default_factory=Silent)
    resume: Checkpoint | None = None
    attachments: Callable[[], Mapping[str, bytes]] = dict
    withdrawn: tuple[Remark, ...] = ()
    simulated: bool = True
    identities: Mapping[str, str] = field(default_factory=dict)
    federation: str | None = None
    judge_personal: Callable[[Outcome], dict[str, Any] | None] | None = None
    begun: float = field(default_factory=time.monotonic)
    outcome: Outcome | None = None


def server_app(job: ServerJob) -> ServerApp:
    """A ServerApp that leads one run and writes its folder."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context  # everything is in the plan
        job.outcome = lead(job, grid)

    return app


def lead(job: ServerJob, grid: Grid) -> Outcome:
    """Play a run on a grid and write its model and summary.

    Raises:
        RunError: the run could not go on; what was played is in the last checkpoint.
    """
    plan = job.plan
    model = build_for(plan)
    evaluate = None
    if job.test is not None and plan.evaluation.where == "server":
        evaluate = evaluator(plan, model, job.test)
    layout, initial = shared_layout(plan, model), get_parameters(model)
    federation = Federation(
        plan=plan,
        grid=grid,
        layout=layout,
        initial={name: initial[name] for name, _ in layout.entries},
        evaluate=evaluate,
        folder=job.folder,
        observer=job.observer,
        resume=job.resume,
        attachments=job.attachments,
        federation=job.federation,
        identities=job.identities,
        simulated=job.simulated,
    )
    job.resume = None
    del initial
    del model  # who evaluates has it, nobody else needs it
    job.folder.drop_summary()  # of an earlier end, if the run goes on: it would pass for this one's after a crash
    startup = time.monotonic() - job.begun
    outcome = federation.run()
    if plan.statistics is None:
        write_parameters(job.folder.model, outcome.parameters)
    else:
        from server.statistics import statistics_of_run, write_statistics

        released = statistics_of_run(plan, outcome.parameters, outcome.state)
        if released is not None:
            write_statistics(job.folder, released)
    if plan.personal is not None and outcome.stopped != "failed":
        _hand_out(job, grid, layout, outcome)
    statements, gaps = _statements(job, grid, outcome) if plan.is_private else ({}, [])
    job.folder.write_summary(
        summarise(
            plan,
            outcome.state,
            stopped=outcome.stopped,
            reason=outcome.reason,
            also_withdrawn=job.withdrawn,
            simulated=job.simulated,
            clients=sorted({*outcome.nodes, *outcome.state.clients}),  # who has gone has spent all the same
            startup_seconds=startup,
            statements=statements,
            gaps=gaps,
            personal=None if job.judge_personal is None else job.judge_personal(outcome),
        )
    )
    from server.report import write_report  # brings a template engine, which no round needs

    write_report(job.folder)
    if is_central(plan):
        put_away(job.folder.population, durable=not job.simulated)
    return outcome


def _hand_out(job: ServerJob, grid: Grid, layout: Layout, outcome: Outcome) -> None:
    """Send everybody the last model, for what is each one's own."""
    timeout = WAIT_SECONDS if job.simulated else job.plan.federation.round_timeout
    nodes, state = outcome.nodes, outcome.state
    missing = hand_out(grid, job.plan, layout, outcome.parameters, nodes, state, timeout=timeout)
    if missing:
        reasons = ", ".join(sorted({fault.fault.reason for fault in missing}))
        job.observer.note(
            f"{len(missing)} of {len(nodes)} clients did not get the last model for their personal one ({reasons})"
        )


def _statements(job: ServerJob, grid: Grid, outcome: Outcome) -> tuple[dict[str, str], list[str]]:
    """Ask every client what it spent, keep what is signed; say of each whether it holds, and who wrote off a gap."""
    stated, faults = ask_for_statements(
        grid,
        job.plan,
        outcome.nodes,
        outcome.state.clients,
        owners=None if job.simulated else job.identities,
        # The claim hangs on it, and a site may be away for a while: as patient as in a round.
        timeout=WAIT_SECONDS if job.simulated else job.plan.federation.round_timeout,
    )
    if not job.plan.has_secret_cohorts:  # how long a ledger has become says how often its client was drawn (rule 3)
        job.folder.write_statements({item.client: item.text for item in stated}, durable=not job.simulated)
    for item in stated:
        if item.statement is not None and not is_central(job.plan):  # there the population's own books count
            tally = outcome.state.client(item.client)
            tally.reported = max(tally.reported, spent_in(job.plan, item.statement))
    found = {item.client: "verified" if item.problem is None else f"not verified: {item.problem}" for item in stated}
    gaps = [item.client for item in stated if item.statement is not None and item.statement.withdrawn]
    return found | {fault.client: f"none: {fault.fault.reason}" for fault in faults}, gaps
