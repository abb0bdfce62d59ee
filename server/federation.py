"""The federation loop: cohort, messages, replies, step, evaluation, checkpoint; round after round.

Flower's `Strategy.start` knows no first round, checkpoint or early stop, so the loop over its hooks is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from privacy.accountant import epsilon
from security.errors import RunError
from server.checkpoint import Checkpoint, save_checkpoint
from server.cohort import sample_cohort
from server.cohort_grid import CohortGrid
from server.evaluation import Evaluate
from server.replies import ClientFault, Update, read_reply
from server.roster import roster
from server.rounds.plain import EveryReplyRound, MeanRound, Round, Tally
from server.run_folder import RunFolder, write_parameters
from server.run_state import ClientTally, RunState
from server.strategies import ServerStrategy, State, StrategyError, make_strategy
from server.streams import stream_replies
from server.summary import privacy_unit
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
        seconds: wall time of the round with its evaluation; the checkpoint comes after.
        cohort: number of clients in the cohort.
        updates: number of good updates.
        faults: `client` and `reason` of each missing one, in the cohort's order.
        train_loss: mean training loss; None under privacy.
        epsilon_max: largest epsilon a client has spent so far, the failed rounds included; None without privacy, or
            where none can be computed.
        bytes_up, bytes_down: parameters on the wire.
        evaluation: metrics of the new model; None where it was not evaluated.
        unit: what the epsilon protects (rule 6); None without privacy.
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
        clients: ids of all clients.
        reason: for a failed run, one line that says why.
    """

    stopped: Stopped | None
    parameters: Parameters
    state: RunState
    clients: list[str]
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
        charge: has clients charge themselves a round that was cut off, where the server can reach their accounts.
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
    charge: Callable[[Sequence[str]], None] | None = None

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
        if self._settle(state) or self.resume is None:
            self._checkpoint(parameters, state, strategy.memory())
        stopped: Stopped | None = state.progress.stop(plan.evaluation)
        while stopped is None and state.round < plan.federation.rounds:
            begin = time.monotonic()
            number = state.round + 1
            cohort = sample_cohort(plan, number, list(nodes))
            memory = strategy.memory()
            self.folder.begin_round(number, cohort)
            played = self._play(number, {c: nodes[c] for c in cohort}, strategy, parameters)
            tally = played.tally
            for client, reported in tally.epsilons.items():
                own = state.clients.setdefault(client, ClientTally())
                own.reported = max(own.reported, reported)
            faults = {fault.client: fault for fault in tally.faults}
            answered = {*faults, *tally.updates}  # a user's own strategy may ask fewer than the cohort
            for client in cohort:
                if client in answered:
                    state.note_client(number, client, faults.get(client))
            failure = self._failure(number, cohort, played, state)
            if failure is not None:
                self._judge_last(parameters, state)
                self._checkpoint(parameters, state, memory)  # the round is not done, but its charges stay
                return Outcome(failure[0], parameters, state, list(nodes), failure[1])
            parameters = played.model if played.model is not None else parameters
            evaluation = self._evaluate(number, parameters, state)
            stopped = state.progress.stop(plan.evaluation) if evaluation is not None else None
            state.round = number
            state.bytes_up += tally.received
            state.bytes_down += played.sent
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
                epsilon_max=self._epsilon_max(state, tally),
                bytes_up=tally.received,
                bytes_down=played.sent,
                evaluation=evaluation,
                unit=privacy_unit(plan) if plan.is_private else None,
            )
            self.folder.append_metrics(asdict(record))
            self._checkpoint(parameters, state, strategy.memory())
            self.folder.keep_best(state.progress.best_round)
            self.observer.round_done(record)
        return Outcome(stopped, parameters, state, list(nodes))

    def _settle(self, state: RunState) -> bool:
        """Charge a round that a crash cut off, in the server's books and the clients' (principle 5); whether it did.

        Its clients may have answered with noise that nobody can draw again, so playing it again is a second release.
        Reproducible noise is the exception: the second time is the first.
        """
        found = self.folder.cut_off()
        if found is None or found[0] <= state.round:
            return False
        if not self.plan.is_private or self.plan.privacy.noise != "secret":
            return False
        state.note_cut_off(*found)
        self.observer.note(
            f"round {found[0]} was cut off and is played again; both times are charged, so the budget may end a round "
            "early"
        )
        if self.charge is not None:
            self.charge(found[1])
        return True

    def _play(self, number: int, nodes: Mapping[str, int], strategy: ServerStrategy, parameters: Parameters) -> _Played:
        """One round's messages and replies."""
        tally = Tally()
        if not nodes:
            return _Played(tally)
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
        model: Parameters | None = None
        problem: str | None = None
        sent = {clients[message.metadata.dst_node_id]: message for message in messages}
        for contributions in kind.steps(start, self._outcomes(number, messages, clients), tally):
            if len(tally.updates) >= self._needed(len(nodes)):
                try:
                    model = strategy.aggregate(number, sent, contributions)
                except StrategyError as error:
                    problem = str(error)
        return _Played(tally, model, problem, wire_bytes(arrays) * len(messages))

    def _outcomes(
        self, number: int, messages: list[Message], clients: Mapping[int, str]
    ) -> Iterator[Update | ClientFault]:
        """Each client's update or fault, in the order of arrival; each client once, and of this round alone."""
        missing = {message.metadata.dst_node_id for message in messages}
        for reply in stream_replies(self.grid, messages, self.plan.federation.round_timeout):
            node = reply.metadata.src_node_id
            if node not in missing or reply.metadata.group_id != str(number):
                continue
            missing.remove(node)
            yield read_reply(reply, clients[node], self.layout, self.plan)
        for node in sorted(missing):
            yield ClientFault(clients[node], Fault.TIMED_OUT)

    def _needed(self, cohort: int) -> int:
        """Good updates a round needs. A cohort drawn smaller than the minimum must then be complete."""
        return max(1, min(self.plan.federation.min_clients, cohort))

    def _failure(self, number: int, cohort: list[str], played: _Played, state: RunState) -> tuple[Stopped, str] | None:
        tally, needed = played.tally, self._needed(len(cohort))
        if played.problem is not None:
            return "failed", f"round {number}: {played.problem}"
        if not cohort or len(tally.updates) >= needed:
            return None
        refusing = [fault.client for fault in tally.faults if fault.fault is Fault.BUDGET_EXHAUSTED]
        if len(tally.updates) + len(refusing) >= needed:
            reason = (
                f"round {number}: {len(refusing)} of {len(cohort)} clients have no privacy budget left; "
                f"{len(tally.updates)} good updates are too few, the plan needs {needed}"
            )
            more = max(state.clients[client].charged for client in refusing) - state.round
            if more > 0:
                rounds = "1 round was" if more == 1 else f"{more} rounds were"
                reason += f"; {rounds} cut off or failed and played again, charged each time"
            return "budget", reason
        reasons = sorted({fault.fault.reason for fault in tally.faults}) or ["nobody else was asked"]
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
            write_parameters(self.folder.best_candidate(number), parameters)
        return metrics

    def _judge_last(self, parameters: Parameters, state: RunState) -> None:
        """A run that ends early ends with a model that may not have been evaluated yet."""
        if self.evaluate is not None and state.round % self.plan.evaluation.every:
            state.evaluation = self.evaluate(parameters)

    def _epsilon_max(self, state: RunState, tally: Tally) -> float | None:
        """From the server's own books; what clients say of themselves can only add to it."""
        release = self.plan.round_release()
        if release is None:
            return None
        charged = max((client.charged for client in state.clients.values()), default=0)
        spent = epsilon({release: charged}, self.plan.privacy.delta).epsilon
        largest = max([spent, *tally.epsilons.values()])
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
        self.folder.end_round()

    def _restore(self, strategy: ServerStrategy, checkpoint: Checkpoint) -> None:
        if strategy.adapter is None or checkpoint.strategy is None:
            raise RunError(
                f"federation.strategy = '{self.plan.federation.strategy}': can't resume, it keeps no state; give the "
                "class get_state() and set_state(state)"
            )
        strategy.adapter.load(strategy.flower, checkpoint.strategy)
