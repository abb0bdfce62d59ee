"""The federation loop: cohort, messages, replies, step, evaluation, checkpoint; round after round.

Flower's `Strategy.start` knows no first round, checkpoint or early stop, so the loop over its hooks is here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from security.errors import RunError
from server.checkpoint import Checkpoint, save_checkpoint
from server.cohort import sample_cohort
from server.cohort_grid import CohortGrid
from server.evaluation import Evaluate
from server.replies import ClientFault, Update, read_reply
from server.roster import roster
from server.rounds.plain import EveryReplyRound, MeanRound, Round, Tally
from server.run_folder import RunFolder, write_parameters
from server.run_state import RunState
from server.strategies import ServerStrategy, make_strategy
from server.streams import stream_replies
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import LAYOUT_DIGEST, PLAN_DIGEST

Stopped = Literal["target", "plateau", "budget", "failed"]


@dataclass(frozen=True)
class RoundRecord:
    """One line of metrics.jsonl.

    Attributes:
        round: number of the round, from 1.
        seconds: wall time of the round, evaluation and checkpoint included.
        cohort: number of clients asked.
        updates: number of good updates.
        faults: `client` and `reason` of each missing one.
        train_loss: mean training loss; None under privacy.
        epsilon_max: largest epsilon a client has spent so far; None without privacy.
        bytes_up, bytes_down: parameters on the wire.
        evaluation: metrics of the new model; None where it was not evaluated.
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


class Observer(Protocol):
    """Is told how the run goes."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The clients are there; `done` rounds were played before (on resume)."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and on disk."""
        ...


class Silent:
    """An observer that says nothing."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
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
        clients: ids of all clients.
        reason: for a failed run, one line that says why.
    """

    stopped: Stopped | None
    parameters: Parameters
    state: RunState
    clients: list[str]
    reason: str | None = None


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

    def run(self) -> Outcome:
        """Play the plan's rounds.

        Raises:
            RunError: clients can't be reached, or the disk can't be written. A round with too few good updates is
                an outcome, not an error.
        """
        plan = self.plan
        nodes = roster(self.grid, plan)
        strategy = make_strategy(plan)
        parameters, state = self.initial, RunState()
        if self.resume is not None:
            parameters, state = self.resume.parameters, self.resume.state
            self._restore(strategy, self.resume)
        self.folder.truncate_metrics(state.round)
        self.observer.started(plan, len(nodes), state.round)
        if self.resume is None:
            self._checkpoint(parameters, state, strategy)
        stopped: Stopped | None = state.progress.stop(plan.evaluation)
        while stopped is None and state.round < plan.federation.rounds:
            begin = time.monotonic()
            number = state.round + 1
            cohort = sample_cohort(plan, number, list(nodes))
            tally, moved, sent_bytes = self._play(number, {c: nodes[c] for c in cohort}, strategy, parameters)
            faults = {fault.client: fault.fault for fault in tally.faults}
            for client in cohort:
                state.note_client(number, client, faults.get(client))
            failure = self._too_few(number, cohort, tally)
            if failure is not None:
                self._checkpoint(parameters, state, strategy)  # the round is not done, but its charges stay
                return Outcome(failure[0], parameters, state, list(nodes), failure[1])
            parameters = moved if moved is not None else parameters
            evaluation = self._evaluate(number, parameters, state)
            stopped = state.progress.stop(plan.evaluation) if evaluation is not None else None
            state.round = number
            state.bytes_up += tally.received
            state.bytes_down += sent_bytes
            seconds = time.monotonic() - begin
            state.seconds += seconds
            if state.first_round_seconds is None:
                state.first_round_seconds = seconds
            record = RoundRecord(
                round=number,
                seconds=round(seconds, 4),
                cohort=len(cohort),
                updates=len(tally.updates),
                faults=[{"client": fault.client, "reason": fault.fault.reason} for fault in tally.faults],
                train_loss=tally.train_loss,
                epsilon_max=max(tally.epsilons.values(), default=None),
                bytes_up=tally.received,
                bytes_down=sent_bytes,
                evaluation=evaluation,
            )
            self.folder.append_metrics(asdict(record))
            self._checkpoint(parameters, state, strategy)
            self.observer.round_done(record)
        return Outcome(stopped, parameters, state, list(nodes))

    def _play(
        self, number: int, nodes: Mapping[str, int], strategy: ServerStrategy, parameters: Parameters
    ) -> tuple[Tally, Parameters | None, int]:
        """One round's messages and replies: what came back, the next model if there is one, bytes sent."""
        tally = Tally()
        if not nodes:
            return tally, None, 0
        arrays = to_arrays(parameters, self.layout)
        config = ConfigRecord({PLAN_DIGEST: self.plan.digest(), LAYOUT_DIGEST: self.layout.digest})
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
        moved: Parameters | None = None
        for contributions in kind.steps(start, self._outcomes(messages, clients), tally):
            if len(tally.updates) >= self._needed(len(nodes)):
                moved = strategy.aggregate(number, messages, contributions)
        return tally, moved, wire_bytes(arrays) * len(messages)

    def _outcomes(self, messages: list[Message], clients: Mapping[int, str]) -> Iterator[Update | ClientFault]:
        """Each client's update or fault, in the order of arrival; each client once."""
        missing = {message.metadata.dst_node_id for message in messages}
        for reply in stream_replies(self.grid, messages, self.plan.federation.round_timeout):
            node = reply.metadata.src_node_id
            if node not in missing:
                continue
            missing.remove(node)
            yield read_reply(reply, clients[node], self.layout, private=self.plan.is_private)
        for node in sorted(missing):
            yield ClientFault(clients[node], Fault.TIMED_OUT)

    def _needed(self, cohort: int) -> int:
        """Good updates a round needs. A cohort drawn smaller than the minimum must then be complete."""
        return max(1, min(self.plan.federation.min_clients, cohort))

    def _too_few(self, number: int, cohort: list[str], tally: Tally) -> tuple[Stopped, str] | None:
        needed = self._needed(len(cohort))
        if not cohort or len(tally.updates) >= needed:
            return None
        refusals = sum(fault.fault is Fault.BUDGET_EXHAUSTED for fault in tally.faults)
        if len(tally.updates) + refusals >= needed:
            return "budget", (
                f"round {number}: {refusals} of {len(cohort)} clients have no privacy budget left; "
                f"{len(tally.updates)} good updates are too few, the plan needs {needed}"
            )
        reasons = sorted({fault.fault.reason for fault in tally.faults})
        return "failed", (
            f"round {number}: {len(tally.updates)} good updates of {len(cohort)} clients, the plan needs {needed} "
            f"({', '.join(reasons)})"
        )

    def _evaluate(self, number: int, parameters: Parameters, state: RunState) -> dict[str, float] | None:
        plan = self.plan.evaluation
        if self.evaluate is None or (number % plan.every and number != self.plan.federation.rounds):
            return None
        metrics = self.evaluate(parameters)
        state.evaluation = metrics
        state.progress = state.progress.after(plan, number, metrics.get(plan.metric))
        if state.progress.best_round == number:
            write_parameters(self.folder.best_model, parameters)
        return metrics

    def _checkpoint(self, parameters: Parameters, state: RunState, strategy: ServerStrategy) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            Checkpoint(
                plan_digest=self.plan.digest(),
                state=state,
                parameters=parameters,
                strategy=None if strategy.adapter is None else strategy.adapter.save(strategy.flower),
                attachments=self.attachments(),
            ),
        )

    def _restore(self, strategy: ServerStrategy, checkpoint: Checkpoint) -> None:
        if strategy.adapter is None or checkpoint.strategy is None:
            raise RunError(
                f"federation.strategy = '{self.plan.federation.strategy}': can't resume, it keeps no state; give the "
                "class get_state() and set_state(state)"
            )
        model = to_arrays(checkpoint.parameters, self.layout)
        strategy.adapter.load(strategy.flower, checkpoint.strategy, model)
