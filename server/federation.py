"""The federation loop: cohort, messages, replies, step, evaluation, checkpoint; round after round.

Flower's `Strategy.start` knows no first round, checkpoint or early stop, so the loop over its hooks is here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Literal

from flwr.serverapp import Grid

from privacy.accountant import epsilon
from security.errors import RunError
from server.asynchronous import Arrivals, WithModels
from server.checkpoint import Checkpoint, save_checkpoint
from server.claim import privacy_unit
from server.client_evaluation import evaluate_at_clients
from server.cohort import sample_cohort, scheduled_cohort
from server.correlated_noise import FOLDER as NOISE
from server.correlated_noise import CorrelatedNoise, forget
from server.enrolment import enrol
from server.evaluation import Evaluate
from server.model_average import averaged
from server.observer import Observer, RoundRecord
from server.population import Population
from server.replies import ClientFault, Head
from server.roster import roster
from server.rounds.central import CentralRounds, Noise, independent, noise_source
from server.rounds.open import OpenRounds
from server.rounds.plain import Tally
from server.rounds.playing import Federated, Played, Rounds, norm_of, request_config
from server.rounds.unmasked import UnmaskedRounds
from server.run_folder import RunFolder, write_parameters
from server.run_state import RunState
from server.statements import ask_for_statements
from server.strategies import ServerStrategy, State, make_strategy
from server.summary import releases_of
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters, as_sent
from shared_models.plan import Plan
from shared_models.plan_asynchronous import is_asynchronous
from shared_models.plan_central import is_central
from shared_models.plan_correlated import banded_noise, is_correlated
from shared_models.plan_scaffold import is_scaffold

_NOBODY = "nobody else was asked"
_SYNC_SECONDS = 5.0  # of a simulation's rounds without privacy that a loss of power may undo; a kill undoes none
_MOST_GIVEN_UP = 2  # rounds without a sum, one after the other, that end a run

Stopped = Literal["target", "plateau", "budget", "failed"]


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


@dataclass
class Federation:
    """One run of a plan on a grid.

    Attributes:
        plan: the resolved plan.
        grid: how clients are reached.
        layout: names and shapes of what is trained.
        initial: the model the first round starts from; let go when the run begins.
        evaluate: judges a model on the server's own data; None not to.
        folder: where the run is written.
        observer: is told of each round.
        resume: where to go on from; None to start anew. Its model is let go when the run begins.
        attachments: files of others to keep with each checkpoint.
        federation: whose sites take part, as they know it; None for the plan's name, as in a simulation.
        identities: public key of each client's identity; a secure sum asks nobody else.
        simulated: whether all clients are in one place, where they take turns.
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
    federation: str | None = None
    identities: Mapping[str, str] = field(default_factory=dict)
    simulated: bool = False
    _average: Parameters | None = field(default=None, init=False)
    _arrivals: Arrivals | None = field(default=None, init=False)  # of clients at their own pace
    _left_out: set[str] = field(default_factory=set, init=False)
    _synced: float = field(default=-math.inf, init=False)  # when a checkpoint last waited for the disk

    def run(self) -> Outcome:
        """Play the plan's rounds.

        Raises:
            RunError: clients can't be reached, or the disk can't be written. A round with too few good updates, or
                of whose updates the strategy makes no model, is an outcome, not an error.
        """
        plan = self.plan
        nodes = roster(self.grid, plan)
        strategy = self._at_their_own_pace(make_strategy(plan, clients=len(nodes)), sorted(nodes))
        if is_central(plan):
            outcome = self._run_centrally(nodes, strategy)
        else:
            outcome = self._run(nodes, strategy, self._rounds(strategy))
        return replace(outcome, parameters=self._kept(outcome.parameters))

    def _at_their_own_pace(self, strategy: ServerStrategy, clients: Sequence[str]) -> ServerStrategy:
        """Make the schedule of clients at their own pace; the strategy, whose memory then holds their models too."""
        if not is_asynchronous(self.plan):
            return strategy
        if not self.simulated:
            raise RunError("federation.asynchronous: clients at their own pace are for simulations alone; remove it")
        try:
            self._arrivals = Arrivals(self.plan, clients)
        except ValueError as error:
            raise RunError(str(error)) from error
        if strategy.adapter is None:
            return strategy
        return replace(strategy, adapter=WithModels(strategy.adapter, self._arrivals))

    def _run_centrally(self, nodes: dict[str, int], strategy: ServerStrategy) -> Outcome:
        plan = self.plan
        books = Population.at(
            self.folder.population,
            plan,
            federation=self.federation or plan.name,
            begun=self.resume is not None,
            durable=not self.simulated,
        )
        try:
            outcome = self._run(nodes, strategy, self._central_rounds(strategy, nodes, books), books)
        finally:
            books.close()
        if outcome.stopped in (None, "target", "plateau"):  # others may be gone on with
            forget(self.folder.checkpoints / NOISE)
        return outcome

    def _run(
        self, nodes: dict[str, int], strategy: ServerStrategy, rounds: Rounds, books: Population | None = None
    ) -> Outcome:
        plan = self.plan
        parameters, state = self._begin(strategy)
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
            if plan.privacy.trust == "distributed":
                self._checkpoint(parameters, state, strategy.memory())  # or the next restart skips to the same numbers
            self._remind(nodes, state)
        if books is not None and plan.is_paid_at_once and stopped is None and state.round < plan.federation.rounds:
            ended = self._enrol(nodes, state, books.following(state.run))
            if ended is not None:
                self._judge_last(parameters, state)
                self._checkpoint(parameters, state, strategy.memory())
                return Outcome(ended[0], parameters, state, nodes, ended[1])
        while stopped is None and state.round < plan.federation.rounds:
            begin = time.monotonic()
            number = state.round + 1
            cohort = self._cohort(number, nodes, state)
            memory = strategy.memory()
            asked = {c: nodes[c] for c in cohort if c not in self._left_out}
            keep = partial(self._checkpoint, parameters, state, memory)
            played = rounds.play(number, asked, len(cohort), parameters, state, keep)
            if not plan.has_secret_cohorts:
                self._note_left_out(number, [client for client in cohort if client not in asked], played.tally, state)
            failure = self._failure(number, cohort, rounds, played)
            if failure is not None:
                self._judge_last(parameters, state)
                keep()  # the round is not done, but its charges stay
                return Outcome(failure[0], parameters, state, nodes, failure[1])
            del keep, memory  # with the model before
            if played.model is not None:
                parameters = self._next(number, played.model)
                played = replace(played, model=parameters)
            asked = {c: node for c, node in asked.items() if c not in self._left_out}
            evaluation, sent = self._evaluate(number, self._kept(parameters), state, asked)
            stopped = state.progress.stop(plan.evaluation) if evaluation is not None else None
            record = self._record(number, cohort, played, evaluation, sent, time.monotonic() - begin, state)
            durable = self._waits_for_the_disk()
            self.folder.append_metrics(asdict(record), durable=durable)
            self._checkpoint(parameters, state, strategy.memory(), durable=durable)
            self.folder.keep_best(state.progress.best_round)
            self.observer.round_done(record)
            if stopped is None and state.given_up >= _MOST_GIVEN_UP:
                needed = rounds.needed(len(cohort), len(cohort))
                otherwise = "cut off when the server ended" if number in state.begun else _NOBODY
                reason = _too_few(number, cohort, needed, played.tally, otherwise) + (
                    "; it is the second round without a sum, one after the other; resume when more clients are there, "
                    "or plan secure_sum.spare_rounds"
                )
                return Outcome("failed", parameters, state, nodes, reason)
        return Outcome(stopped, parameters, state, nodes)

    def _begin(self, strategy: ServerStrategy) -> tuple[Parameters, RunState]:
        """Model and books that the run begins with. The model is nowhere else from here on, so that a server holds it
        once beside what a round takes, as it is sent."""
        parameters, state = self.initial, RunState()
        if self.resume is not None:
            parameters, state = self.resume.parameters, self.resume.state
            self._average = self.resume.average
            self._restore(strategy, self.resume)
            self.resume = replace(self.resume, parameters={}, average=None, strategy=None)
            state.skip_attempts()
        self.initial = {}
        return as_sent(parameters, self.layout), state

    def _next(self, number: int, made: Parameters) -> Parameters:
        """The model that a round has come to, as it is sent; taken into the average, where the plan keeps one."""
        model, decay = as_sent(made, self.layout), self.plan.federation.model_average
        if decay is not None:
            self._average = averaged(self._average, model, decay=decay, rounds=number)
        return model

    def _kept(self, model: Parameters) -> Parameters:
        """What is judged and kept of a run that has come to a model."""
        return model if self._average is None else self._average

    def _rounds(self, strategy: ServerStrategy) -> Rounds:
        """How the plan's rounds are played."""
        federated = self._federated(strategy)
        if self.plan.privacy.trust == "distributed" and not self.plan.secure.masks:
            return UnmaskedRounds(federated)
        if self.plan.privacy.trust == "distributed":
            from server.rounds.secure import SecureRounds  # brings the protocol's messages

            return SecureRounds(
                federated,
                federation=self.federation or self.plan.name,
                roster=self.identities,
                in_turn=self.simulated,
            )
        return OpenRounds(federated)

    def _central_rounds(self, strategy: ServerStrategy, nodes: Mapping[str, int], books: Population) -> CentralRounds:
        def population() -> list[str]:
            return [client for client in nodes if client not in self._left_out]

        return CentralRounds(self._federated(strategy), books=books, population=population, noise=self._noise())

    def _noise(self) -> Noise:
        """Whence a server that adds the noise has it."""
        plan = self.plan
        if not is_correlated(plan):
            return independent(plan)
        states = self.folder.checkpoints / NOISE
        run = CorrelatedNoise(banded_noise(plan, self.layout.size), states, partial(noise_source, plan))
        return lambda _, number, state: run.of_round(number, state)

    def _cohort(self, number: int, nodes: Mapping[str, int], state: RunState) -> list[str]:
        """Who takes part in a round; with correlated noise, by a schema that the books keep."""
        if self._arrivals is not None:
            return self._arrivals.cohort(number)
        if not is_correlated(self.plan):
            return sample_cohort(self.plan, number, list(nodes))
        there = [client for client in nodes if client not in self._left_out]
        asked = {client: tally.asked for client, tally in state.clients.items()}
        return scheduled_cohort(self.plan, number, there, asked)

    def _federated(self, strategy: ServerStrategy) -> Federated:
        return Federated(
            plan=self.plan,
            grid=self.grid,
            layout=self.layout,
            strategy=strategy,
            hear=self._hear,
            tell=self.observer.note,
            arrivals=self._arrivals,
            folder=self.folder.path,
        )

    def _enrol(self, nodes: Mapping[str, int], state: RunState, following: int) -> tuple[Stopped, str] | None:
        """Have everybody pay for all rounds; why the run can't begin, if too few do.

        Who refuses does so by plan, policy and ledger alone, so it may be known, and end a run.
        """
        known = {client: node for client, node in nodes.items() if client not in self._left_out}
        config = request_config(self.plan, self.layout, state)
        paid, faults = enrol(self.grid, self.plan, known, config, following=following)
        for one in paid:
            if state.client(one.client).head is None:  # of a run that is resumed it is an old entry, and no news
                self._hear(state, 0, one.client, None, one.head)
        for fault in faults:
            state.note_enrolment(fault)
            if fault.refused:
                self._left_out.add(fault.client)
        ahead = [fault.client for fault in faults if fault.fault is Fault.ROUND_REPEATED]
        if ahead:
            return "failed", (
                f"{len(ahead)} of {len(nodes)} clients have played rounds that this run's folder does not know: it is "
                "a copy from before, and would release them again; put the newest folder back, or start a new run"
            )
        refusing = [fault for fault in faults if fault.refused]
        needed = max(1, self.plan.federation.min_clients)
        enough = len(nodes) - len(self._left_out) >= needed
        if enough and not paid:
            return "failed", f"none of {len(nodes)} clients says that it has paid; look whether they can be reached"
        if enough:
            return None
        reasons = ", ".join(sorted({fault.fault.reason for fault in refusing}))
        of_budgets = all(fault.fault is Fault.BUDGET_EXHAUSTED for fault in refusing)
        return "budget" if of_budgets and refusing else "failed", (
            f"{len(refusing)} of {len(nodes)} clients refuse the plan ({reasons}); the plan needs {needed} clients"
        )

    def _record(
        self,
        number: int,
        cohort: list[str],
        played: Played,
        evaluation: dict[str, float] | None,
        sent: int,
        seconds: float,
        state: RunState,
    ) -> RoundRecord:
        """Enter a round that is over into the books; its line of metrics.

        Args:
            number, cohort, played, state: the round's.
            evaluation: metrics of the new model, or None.
            sent: bytes sent to have it judged.
            seconds: wall time.
        """
        tally = played.tally
        for client in tally.updates:
            state.client(client).rounds += 1
            if is_scaffold(self.plan):
                state.client(client).counted = number
        state.given_up = 0 if played.model is not None or played.secure_sum is None else state.given_up + 1
        norm = norm_of(self.plan, state)
        state.clipping_norm = state.clipping_norm if played.clipping_norm is None else played.clipping_norm
        state.released = played.released
        state.round = number
        state.bytes_up += tally.received
        state.bytes_down += played.sent + sent
        state.seconds += seconds
        if state.first_round_seconds is None:
            state.first_round_seconds = seconds
        faults = {fault.client: fault for fault in tally.faults}
        central, secret = is_central(self.plan), self.plan.has_secret_cohorts
        return RoundRecord(
            round=number,
            seconds=None if secret else round(seconds, 4),
            cohort=None if secret else len(cohort),
            updates=None if central else len(tally.updates),
            faults=[{"client": c, "reason": faults[c].fault.reason} for c in cohort if c in faults],
            train_loss=tally.train_loss,
            epsilon_max=self._epsilon_max(state),
            bytes_up=None if central else tally.received,
            bytes_down=None if central else played.sent + sent,
            evaluation=evaluation,
            unit=privacy_unit(self.plan) if self.plan.is_private else None,
            examples=tally.examples,
            secure_sum=played.secure_sum,
            clipping_norm=norm,
            asynchronous=None if self._arrivals is None else self._arrivals.record(number),
        )

    def _remind(self, nodes: Mapping[str, int], state: RunState) -> None:
        """Remind the clients of what the server has seen of their ledgers; who lacks it is not asked any more."""
        known = {c: node for c, node in nodes.items() if c in state.clients and state.clients[c].head is not None}
        _, faults = ask_for_statements(self.grid, self.plan, known, state.clients)
        for client in sorted(fault.client for fault in faults if fault.fault is Fault.LEDGER_CLOSED):
            self._leave_out(client)

    def _hear(self, state: RunState, number: int, client: str, epsilon: float | None, head: Head) -> None:
        """Note what a good reply says of its client's books."""
        # Where a server adds the noise its own books say what a round costs everybody; who was asked must not show.
        told = None if is_central(self.plan) else epsilon
        if not state.client(client).tell(number, epsilon=told, head=head):
            self._leave_out(client)

    def _note_left_out(self, number: int, clients: list[str], tally: Tally, state: RunState) -> None:
        """Note who was drawn and not asked."""
        for client in clients:
            fault = ClientFault(client, Fault.LEDGER_CLOSED, refused=True)
            tally.faults.append(fault)
            state.note_client(number, client, fault)

    def _leave_out(self, client: str) -> None:
        self._left_out.add(client)
        if self.plan.has_secret_cohorts:  # it was asked: that is nobody's business
            return
        self.observer.note(
            f"client {client}: its ledger lacks entries that it told of before, or can't be read; it is left out"
        )

    def _failure(self, number: int, cohort: list[str], rounds: Rounds, played: Played) -> tuple[Stopped, str] | None:
        if played.exhausted is not None:
            return "budget", f"round {number}: {played.exhausted}"
        if played.problem is not None:
            return "failed", f"round {number}: {played.problem}"
        if not cohort or played.model is not None:
            return None
        refusing = [fault.client for fault in played.tally.faults if fault.fault is Fault.BUDGET_EXHAUSTED]
        left = len(cohort) - len(refusing)
        needed = rounds.needed(len(cohort), left)
        # Budgets alone must have ended it: any other reason may depend on data, and what is claimed then is more.
        if left < needed:
            return "budget", (
                f"round {number}: {len(refusing)} of {len(cohort)} clients have no privacy budget left; "
                f"{len(played.tally.updates)} good updates are too few, the plan needs {needed}"
            )
        if played.secure_sum is not None:  # one such round is borne
            return None
        return "failed", _too_few(number, cohort, needed, played.tally)

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
            config=request_config(self.plan, self.layout, state),
        )
        for reply in found.replies:
            self._hear(state, number, reply.client, reply.epsilon, reply.head)
            state.note_evaluation(number, reply.client, None)
        for fault in found.faults:
            state.note_evaluation(number, fault.client, fault)
        state.by_class = None if found.by_class is None else found.by_class.to_json()
        return found.metrics, found.sent

    def _judge_last(self, parameters: Parameters, state: RunState) -> None:
        """A run that ends early ends with a model that may not have been evaluated yet.

        Only by the server: clients would be charged for a judgement that the plan doesn't know.
        """
        if self.evaluate is not None and state.round % self.plan.evaluation.every:
            state.evaluation = self.evaluate(self._kept(parameters))

    def _epsilon_max(self, state: RunState) -> float | None:
        """From the server's own books; what clients say of themselves can only add to it."""
        if not self.plan.is_private:
            return None
        alike = {(tally.trainings, len(tally.evaluated)): tally for tally in state.clients.values()}  # cost the same
        charged = {releases_of(self.plan, tally) for tally in alike.values()}
        spent = [epsilon(dict(releases), self.plan.privacy.delta).epsilon for releases in charged]
        largest = max([0.0, *spent, *(tally.reported for tally in state.clients.values())])
        return largest if math.isfinite(largest) else None

    def _waits_for_the_disk(self) -> bool:
        """Whether a round is on the disk before the next one begins. Stored replies and charges of a private run go
        back no further than checkpoints do; without privacy what is lost is computed again."""
        recently = time.monotonic() - self._synced < _SYNC_SECONDS
        return not (self.simulated and recently and not self.plan.is_private)

    def _checkpoint(
        self, parameters: Parameters, state: RunState, memory: State | None, *, durable: bool = True
    ) -> None:
        save_checkpoint(
            self.folder.checkpoints,
            Checkpoint(
                plan_digest=self.plan.digest(),
                state=state,
                parameters=parameters,
                average=self._average,
                strategy=memory,
                attachments=self.attachments(),
            ),
            durable=durable,
        )
        if durable:
            self._synced = time.monotonic()

    def _restore(self, strategy: ServerStrategy, checkpoint: Checkpoint) -> None:
        if strategy.adapter is None or checkpoint.strategy is None:
            raise RunError(
                f"federation.strategy = '{self.plan.federation.strategy}': can't resume, it keeps no state; give the "
                "class get_state() and set_state(state)"
            )
        strategy.adapter.load(strategy.flower, checkpoint.strategy)


def _too_few(number: int, cohort: list[str], needed: int, tally: Tally, otherwise: str = _NOBODY) -> str:
    """Why a round failed, in one line; `otherwise` is the reason where no client gave one."""
    reasons = sorted({fault.fault.reason for fault in tally.faults}) or [otherwise]
    return (
        f"round {number}: {len(tally.updates)} good updates of {len(cohort)} clients, the plan needs {needed} "
        f"({', '.join(reasons)})"
    )
