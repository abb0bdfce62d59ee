"""The federation loop: cohort, messages, replies, step, evaluation, checkpoint; round after round.

Flower's `Strategy.start` knows no first round, checkpoint or early stop, so the loop over its hooks is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from privacy.accountant import epsilon
from security.errors import RunError
from server.checkpoint import Checkpoint, save_checkpoint
from server.claim import privacy_unit
from server.client_evaluation import evaluate_at_clients
from server.cohort import sample_cohort
from server.cohort_grid import CohortGrid
from server.evaluation import Evaluate
from server.replies import ClientFault, Head, read_reply
from server.roster import roster
from server.rounds.plain import EveryReplyRound, MeanRound, Round, Tally
from server.run_folder import RunFolder, write_parameters
from server.run_state import RunState
from server.statements import ask_for_statements
from server.strategies import ServerStrategy, State, StrategyError, make_strategy
from server.streams import answers
from server.summary import releases_of
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import LAYOUT_DIGEST, PLAN_DIGEST, RUN

Stopped = Literal["target", "plateau", "budget", "failed"]


@dataclass(frozen=True)
class RoundRecord:
    """One line of metrics.jsonl.

    Attributes:
        round: number of the round, from 1.
        seconds: wall time of the round with its evaluation; the checkpoint comes after.
        cohort: number of clients in the cohort.
        updates: number of good updates.
        faults: `client` and `reason` of each missing one, in the cohort's order.
        train_loss: mean training loss; None under privacy, unless sites let it out unprotected.
        epsilon_max: largest epsilon a client has spent so far, the failed rounds included; None without privacy, or
            where none can be computed.
        bytes_up, bytes_down: parameters on the wire.
        evaluation: metrics of the new model; None where it was not evaluated.
        unit: what the epsilon protects (rule 6); None without privacy.
        examples: number of records of the clients whose sites let that out unprotected; None if none did.
    """

    round: int
    seconds: float
    cohort: int
    updates: int
    faults: list[dict[str, str]]
    train_loss: float | None
    epsilon_max: float | None
    bytes_up: int
    bytes_down: int
    evaluation: dict[str, float] | None
    unit: str | None = None
    examples: int | None = None


class Observer(Protocol):
    """Is told how the run goes."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The clients are there; `done` rounds were played before (on resume)."""
        ...

    def note(self, text: str) -> None:
        """Something to know before the rounds begin, in one line."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and on disk."""
        ...


class Silent:
    """An observer that says nothing."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """Nothing to say."""

    def note(self, text: str) -> None:
        """Nothing to say."""

    def round_done(self, record: RoundRecord) -> None:
        """Nothing to say."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        stopped: None if all rounds were played.
        parameters: the shared model at the end.
        state: the run's books.
        nodes: node of each client, by id.
        reason: for a failed run, one line that says why.
    """

    stopped: Stopped | None
    parameters: Parameters
    state: RunState
    nodes: dict[str, int]
    reason: str | None = None


@dataclass(frozen=True)
class _Played:
    """What came of one round's messages.

    Attributes:
        tally: who answered, and how.
        model: the next model, or None if there is none: an empty cohort, too few updates, or a strategy that failed.
        problem: what the strategy said, if it failed.
        sent: bytes of parameters on the wire.
    """

    tally: Tally
    model: Parameters | None = None
    problem: str | None = None
    sent: int = 0


@dataclass
class Federation:
    """One run of a plan on a grid.

    Attributes:
        plan: the resolved plan.
        grid: how clients are reached.
        layout: names and shapes of what is trained.
        initial: the model the first round starts from.
        evaluate: judges a model on the server's own data; None not to.
        folder: where the run is written.
        observer: is told of each round.
        resume: where to go on from; None to start anew.
        attachments: files of others to keep with each checkpoint.
    """

    plan: Plan
    grid: Grid
    layout: Layout
    initial: Parameters
    evaluate: Evaluate | None
    folder: RunFolder
    observer: Observer
    resume: Checkpoint | None = None
    attachments: Callable[[], Mapping[str, bytes]] = dict
    _left_out: set[str] = field(default_factory=set, init=False)

    def run(self) -> Outcome:
        """Play the plan's rounds.

        Raises:
            RunError: clients can't be reached, or the disk can't be written. A round with too few good updates, or
                of whose updates the strategy makes no model, is an outcome, not an error.
        """
        plan = self.plan
        nodes = roster(self.grid, plan)
        strategy = make_strategy(plan)
        parameters, state = self.initial, RunState()
        if self.resume is not None:
            parameters, state = self.resume.parameters, self.resume.state
            self._restore(strategy, self.resume)
        self.folder.truncate_metrics(state.round)
        self.folder.keep_best(state.progress.best_round)
        self.observer.started(plan, len(nodes), state.round)
        if strategy.adapter is None:
            self.observer.note(
                f"federation.strategy = '{strategy.name}' keeps no state, so this run can't be resumed; give the class "
                "get_state() and set_state(state)"
            )
        stopped: Stopped | None = state.progress.stop(plan.evaluation)
        if self.resume is None:
            self._checkpoint(parameters, state, strategy.memory())  # the run's id is on disk before anybody hears it
        elif stopped is None and state.round < plan.federation.rounds:
            self._remind(nodes, state)
        while stopped is None and state.round < plan.federation.rounds:
            begin = time.monotonic()
            number = state.round + 1
            cohort = sample_cohort(plan, number, list(nodes))
            memory = strategy.memory()
            asked = {c: nodes[c] for c in cohort if c not in self._left_out}
            played = self._play(number, asked, self._needed(len(cohort)), strategy, parameters, state)
            tally = played.tally
            tally.faults += [ClientFault(c, Fault.LEDGER_CLOSED, refused=True) for c in cohort if c not in asked]
            faults = self._note(state, number, cohort, tally)
            failure = self._failure(number, cohort, played)
            if failure is not None:
                self._judge_last(parameters, state)
                self._checkpoint(parameters, state, memory)  # the round is not done, but its charges stay
                return Outcome(failure[0], parameters, state, nodes, failure[1])
            parameters = played.model if played.model is not None else parameters
            for client in tally.updates:
                state.client(client).rounds += 1
            asked = {c: node for c, node in asked.items() if c not in self._left_out}
            evaluation, sent = self._evaluate(number, parameters, state, asked)
            stopped = state.progress.stop(plan.evaluation) if evaluation is not None else None
            sent += played.sent
            state.round = number
            state.bytes_up += tally.received
            state.bytes_down += sent
            seconds = time.monotonic() - begin
            state.seconds += seconds
            if state.first_round_seconds is None:
                state.first_round_seconds = seconds
            record = RoundRecord(
                round=number,
                seconds=round(seconds, 4),
                cohort=len(cohort),
                updates=len(tally.updates),
                faults=[{"client": c, "reason": faults[c].fault.reason} for c in cohort if c in faults],
                train_loss=tally.train_loss,
                epsilon_max=self._epsilon_max(state),
                bytes_up=tally.received,
                bytes_down=sent,
                evaluation=evaluation,
                unit=privacy_unit(plan) if plan.is_private else None,
                examples=tally.examples,
            )
            self.folder.append_metrics(asdict(record))
            self._checkpoint(parameters, state, strategy.memory())
            self.folder.keep_best(state.progress.best_round)
            self.observer.round_done(record)
        return Outcome(stopped, parameters, state, nodes)

    def _remind(self, nodes: Mapping[str, int], state: RunState) -> None:
        """Remind the clients of what the server has seen of their ledgers; who lacks it is not asked any more."""
        known = {c: node for c, node in nodes.items() if c in state.clients and state.clients[c].head is not None}
        _, faults = ask_for_statements(self.grid, self.plan, known, state.clients)
        for client in sorted(fault.client for fault in faults if fault.fault is Fault.LEDGER_CLOSED):
            self._leave_out(client)

    def _hear(self, state: RunState, number: int, client: str, epsilon: float | None, head: Head) -> None:
        """Note what a good reply says of its client's books."""
        if not state.client(client).tell(number, epsilon=epsilon, head=head):
            self._leave_out(client)

    def _leave_out(self, client: str) -> None:
        self._left_out.add(client)
        self.observer.note(
            f"client {client}: its ledger lacks entries that it told of before, or can't be read; it is left out"
        )

    def _note(self, state: RunState, number: int, cohort: list[str], tally: Tally) -> dict[str, ClientFault]:
        """Enter a round's answers into the books; the faults by client."""
        for client in tally.updates:
            self._hear(state, number, client, tally.epsilons.get(client), tally.heads[client])
        for client in tally.unprotected:
            state.client(client).note_unprotected(number)
        faults = {fault.client: fault for fault in tally.faults}
        answered = {*faults, *tally.updates}  # a user's own strategy may ask fewer than the cohort
        for client in cohort:
            if client in answered:
                state.note_client(number, client, faults.get(client))
        return faults

    def _play(
        self,
        number: int,
        nodes: Mapping[str, int],
        needed: int,
        strategy: ServerStrategy,
        parameters: Parameters,
        state: RunState,
    ) -> _Played:
        """One round's messages to `nodes`, and their replies; fewer than `needed` good ones make no model."""
        tally = Tally()
        if not nodes:
            return _Played(tally)
        arrays = to_arrays(parameters, self.layout)
        config = ConfigRecord(dict(self._config(state)))
        clients = {node: client for client, node in nodes.items()}
        facade = CohortGrid(self.grid, list(nodes.values()))
        messages = strategy.configure(number, arrays, config, facade)
        place = {node: i for i, node in enumerate(clients)}
        messages.sort(key=lambda message: place[message.metadata.dst_node_id])
        for message in messages:
            message.metadata.group_id = str(number)
        # What the clients train from: under float16 it is not quite the server's own model.
        start = from_arrays(arrays, self.layout)
        kind: Round = EveryReplyRound(nodes) if strategy.every_reply else MeanRound()
        model: Parameters | None = None
        problem: str | None = None
        sent = {clients[message.metadata.dst_node_id]: message for message in messages}
        replies = answers(
            self.grid,
            messages,
            clients,
            lambda reply, client: read_reply(reply, client, self.layout, self.plan),
            timeout=self.plan.federation.round_timeout,
        )
        for contributions in kind.steps(start, replies, tally):
            if len(tally.updates) >= needed:
                try:
                    model = strategy.aggregate(number, sent, contributions)
                except StrategyError as error:
                    problem = str(error)
        return _Played(tally, model, problem, wire_bytes(arrays) * len(messages))

    def _config(self, state: RunState) -> dict[str, str]:
        """What every request says of run and plan."""
        return {PLAN_DIGEST: self.plan.digest(), LAYOUT_DIGEST: self.layout.digest, RUN: state.run}

    def _needed(self, cohort: int) -> int:
        """Good updates a round needs. A cohort drawn smaller than the minimum must then be complete."""
        return max(1, min(self.plan.federation.min_clients, cohort))

    def _failure(self, number: int, cohort: list[str], played: _Played) -> tuple[Stopped, str] | None:
        tally, needed = played.tally, self._needed(len(cohort))
        if played.problem is not None:
            return "failed", f"round {number}: {played.problem}"
        if not cohort or len(tally.updates) >= needed:
            return None
        refusing = [fault.client for fault in tally.faults if fault.fault is Fault.BUDGET_EXHAUSTED]
        # Budgets alone must have ended it: any other reason may depend on data, and what is claimed then is more.
        if len(cohort) - len(refusing) < needed:
            return "budget", (
                f"round {number}: {len(refusing)} of {len(cohort)} clients have no privacy budget left; "
                f"{len(tally.updates)} good updates are too few, the plan needs {needed}"
            )
        reasons = sorted({fault.fault.reason for fault in tally.faults}) or ["nobody else was asked"]
        return "failed", (
            f"round {number}: {len(tally.updates)} good updates of {len(cohort)} clients, the plan needs {needed} "
            f"({', '.join(reasons)})"
        )

    def _evaluate(
        self, number: int, parameters: Parameters, state: RunState, nodes: Mapping[str, int]
    ) -> tuple[dict[str, float] | None, int]:
        """Metrics of the new model, None where it is not judged; and the bytes of parameters sent for it."""
        sent = 0
        if not self.plan.is_evaluated(number):
            return None, sent
        if self.plan.evaluates_at_clients:
            metrics, sent = self._evaluate_at_clients(number, parameters, state, nodes)
        elif self.evaluate is not None:
            metrics = self.evaluate(parameters)
        else:
            return None, sent
        plan = self.plan.evaluation
        state.evaluation = metrics
        state.progress = state.progress.after(plan, number, metrics.get(plan.metric))
        if state.progress.best_round == number:
            write_parameters(self.folder.best_candidate(number), parameters)
        return metrics, sent

    def _evaluate_at_clients(
        self, number: int, parameters: Parameters, state: RunState, nodes: Mapping[str, int]
    ) -> tuple[dict[str, float], int]:
        found = evaluate_at_clients(
            self.grid,
            self.plan,
            self.layout,
            parameters,
            nodes,
            round_number=number,
            config=self._config(state),
        )
        for reply in found.replies:
            self._hear(state, number, reply.client, reply.epsilon, reply.head)
            state.note_evaluation(number, reply.client, None)
        for fault in found.faults:
            state.note_evaluation(number, fault.client, fault)
        return found.metrics, found.sent

    def _judge_last(self, parameters: Parameters, state: RunState) -> None:
        """A run that ends early ends with a model that may not have been evaluated yet.

        Only by the server: clients would be charged for a judgement that the plan doesn't know.
        """
        if self.evaluate is not None and state.round % self.plan.evaluation.every:
            state.evaluation = self.evaluate(parameters)

    def _epsilon_max(self, state: RunState) -> float | None:
        """From the server's own books; what clients say of themselves can only add to it."""
        if not self.plan.is_private:
            return None
        charged = {releases_of(self.plan, tally) for tally in state.clients.values()}
        spent = [epsilon(dict(releases), self.plan.privacy.delta).epsilon for releases in charged]
        largest = max([0.0, *spent, *(tally.reported for tally in state.clients.values())])
        return largest if math.isfinite(largest) else None

    def _checkpoint(self, parameters: Parameters, state: RunState, memory: State | None) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            Checkpoint(
                plan_digest=self.plan.digest(),
                state=state,
                parameters=parameters,
                strategy=memory,
                attachments=self.attachments(),
            ),
        )

    def _restore(self, strategy: ServerStrategy, checkpoint: Checkpoint) -> None:
        if strategy.adapter is None or checkpoint.strategy is None:
            raise RunError(
                f"federation.strategy = '{self.plan.federation.strategy}': can't resume, it keeps no state; give the "
                "class get_state() and set_state(state)"
            )
        strategy.adapter.load(strategy.flower, checkpoint.strategy)
