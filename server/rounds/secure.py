"""Rounds in which the server sees no client's update, but their sum with the noise of all (docs/secure-aggregation.md).

A round is one attempt at a secure sum, or a few. One that is aborted before anybody was asked for a masked vector cost
nothing, and is tried again. After that its charge stays (rule 2): another attempt needs one of the plan's spare rounds.
Without one the round is given up, and the model stays as it is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from flwr.app import ArrayRecord, Message

from security.secure_sum.attempt import NONCE_BYTES, Attempt, Phase
from security.secure_sum.parameters import SumParameters
from server.observer import SecureSumRecord
from server.replies import ClientFault
from server.rounds.plain import Contribution, Tally, moved
from server.rounds.playing import Federated, Played, norm_of
from server.rounds.secure_attempt import Attempted, Attempting, Way
from server.rounds.summed import check_cohort, fewest_in_sum, update_of
from server.run_state import RunState
from server.secure_replies import Masked
from server.strategies import StrategyError
from shared_models.faults import Fault
from shared_models.parameters import Parameters, from_arrays
from shared_models.protocol import ARRAYS, CLIPPING_NORM, CONFIG, ROUND
from shared_models.secure_context import attempt_context, model_digest

_FREE: Final = 3  # attempts of a round that may be aborted before they cost anything

# Of the attempt, not of the client: it may take part in the next one.
_PASSING = (Fault.SECURE_SUM_REFUSED, Fault.SECURE_SUM_LOST)


class SecureRounds:
    """Plays rounds as secure sums.

    Args:
        federated: what rounds are played with.
        federation: whose sites take part, as they know it.
        roster: public identity of each client: who isn't on it is not asked, for nobody would share with it.
        in_turn: whether clients work one after the other, as in a simulation: then the short phases, which are made for
            sites that answer at once and together, have no deadline.
    """

    def __init__(
        self, federated: Federated, *, federation: str, roster: Mapping[str, str], in_turn: bool = False
    ) -> None:
        self._with = federated
        self._federation = federation
        self._roster = roster
        self._short = None if in_turn else federated.plan.secure.phase_timeout

    def needed(self, cohort: int, there: int) -> int:
        """Clients that a sum needs; see `Rounds`."""
        return max(self._with.fewest(cohort), fewest_in_sum(self._with.plan, there))

    def play(
        self,
        number: int,
        nodes: Mapping[str, int],
        cohort: int,
        parameters: Parameters,
        state: RunState,
        keep: Callable[[], None],
    ) -> Played:
        """Play one round; see `Rounds`. Before anybody is asked for a masked vector the attempt is on the disk.

        Raises:
            RunError: the cohort is larger than the plan's, or the strategy sends clients different models.
        """
        check_cohort(self._with.plan, cohort, round_number=number)
        round_ = _Round(self._with, number, state, keep)
        known = {client: node for client, node in nodes.items() if client in self._roster}
        if not known:
            return round_.given_up()
        sent, arrays = self._with.requests(number, known, parameters, state)
        model = self._model(sent)
        while (asked := round_.next_cohort(sent)) is not None:
            chosen = self._parameters(len(asked))
            if chosen is None or len(asked) < self.needed(cohort, len(asked)):
                self._with.tell(f"round {number}: {len(asked)} clients are too few for a secure sum of this plan")
                break
            attempt = self._attempt(number, asked, chosen, model, state)
            round_.announce()
            way = Way(
                grid=self._with.grid,
                nodes={client: known[client] for client in asked},
                config={**self._with.config(state), ROUND: number},
                model=model,
                train={client: _train(sent[client]) for client in asked},
                short=self._short,
                long=self._with.plan.federation.round_timeout,
                needed=self._with.fewest(cohort),
            )
            found = Attempting(
                attempt, self._roster, way, begin=round_.begin, heard=round_.hear, fell=round_.fell
            ).play()
            if round_.after(attempt, found):
                start = from_arrays(arrays, self._with.layout)
                update, norm = self._update(found, attempt, norm_of(self._with.plan, state))
                return round_.opened(found, self._step(number, sent, moved(start, update)), norm)
        return round_.given_up()

    def _parameters(self, clients: int) -> SumParameters | None:
        """Of a sum over so many clients; None where none is safe."""
        try:
            return self._with.plan.secure_parameters(clients)
        except ValueError:
            return None

    def _model(self, sent: Mapping[str, Message]) -> str:
        """Digest of the model that all clients are sent."""
        # Mostly one and the same object, with one norm if any.
        models = {(id(arrays), config.get(CLIPPING_NORM)): arrays for arrays, config in map(_train, sent.values())}
        digests = {model_digest(arrays, norm) for (_, norm), arrays in models.items()}
        if len(digests) != 1:
            raise StrategyError(
                f"federation.strategy = '{self._with.strategy.name}': doesn't send every client the same model; with "
                "privacy.trust = 'distributed' it must, for a sum over different ones could tell clients apart"
            )
        return digests.pop()

    def _attempt(
        self, number: int, cohort: Sequence[str], parameters: SumParameters, model: str, state: RunState
    ) -> Attempt:
        """A new attempt, under a number that nobody has heard of."""
        plan, secure = self._with.plan, self._with.plan.secure
        if secure.dimension is None or secure.bits is None:
            raise ValueError("the plan is not resolved: the form of its sums is unknown")
        state.attempt += 1
        return Attempt(
            federation=self._federation,
            run=state.run,
            round=number,
            purpose="train",
            number=state.attempt,
            nonce=os.urandom(NONCE_BYTES),
            cohort=tuple(sorted(cohort)),
            context=attempt_context(plan=plan.digest(), layout=self._with.layout.digest, model=model),
            length=secure.dimension,
            bits=secure.bits,
            parameters=parameters,
        )

    def _update(self, found: Attempted, attempt: Attempt, norm: float | None) -> tuple[Parameters, float | None]:
        assert found.total is not None
        return update_of(
            found.total,
            self._with.plan,
            self._with.layout,
            survivors=len(found.survivors),
            round_number=attempt.round,
            attempt=attempt.digest,
            norm=norm,
        )

    def _step(self, number: int, sent: Mapping[str, Message], towards: Parameters) -> Parameters | StrategyError:
        try:
            return self._with.strategy.aggregate(number, sent, [Contribution(towards, weight=1)])
        except StrategyError as error:
            return error


@dataclass
class _Round:
    """One round's books while its attempts are played.

    Attributes:
        using: what rounds are played with.
        number: of the round.
        state: the run's books.
        keep: writes them to the disk.
    """

    using: Federated
    number: int
    state: RunState
    keep: Callable[[], None]
    _faults: dict[str, ClientFault] = field(default_factory=dict)
    _attempts: int = 0
    _free: int = _FREE
    _begun: bool = False
    _dropped: dict[str, list[str]] = field(default_factory=lambda: Attempted().dropped)
    _sent: int = 0
    _received: int = 0
    _cut_off: int = field(init=False)

    def __post_init__(self) -> None:
        self._cut_off = self.state.begun.count(self.number)

    @property
    def _spare(self) -> int:
        return self.using.plan.spare_rounds - self.state.repeated

    def next_cohort(self, clients: Mapping[str, Any]) -> list[str] | None:
        """Who takes part in the next attempt; None if there is to be none."""
        if self._free == 0 or (self.number in self.state.begun and self._spare <= 0):
            return None
        refusing = {one.client for one in self._faults.values() if one.refused and one.fault not in _PASSING}
        return [client for client in clients if client not in refusing]

    def announce(self) -> None:
        """Note that an attempt is made."""
        self._attempts, self._begun = self._attempts + 1, False

    def begin(self, clients: Sequence[str]) -> None:
        """Charge those who will be asked for masked vectors, and have it on the disk."""
        self._begun = True
        self.state.begin_attempt(self.number, clients)
        self.keep()

    def hear(self, masked: Masked) -> None:
        """Note what a masked reply says of its client's books, whatever becomes of the sum."""
        self.using.hear(self.state, self.number, masked.client, masked.epsilon, masked.head)

    def fell(self, phase: Phase, fault: ClientFault) -> None:
        """Note a client that fell out."""
        self._faults[fault.client] = fault
        self.state.note_attempt_fault(self.number, phase, fault)

    def after(self, attempt: Attempt, found: Attempted) -> bool:
        """Note what came of an attempt; whether the sum is there."""
        self._sent += found.sent
        self._received += found.received
        self._dropped = found.dropped
        if found.total is not None:
            return True
        if not self._begun:
            self._free -= 1
        cost = "its charge stays" if self._begun else "it cost nothing"
        self.using.tell(
            f"round {self.number}: attempt {attempt.number} at the secure sum was aborted in phase {found.phase} "
            f"({found.abort}; {len(found.faults)} of {len(attempt.cohort)} clients fell out); {cost}"
        )
        return False

    def opened(self, found: Attempted, model: Parameters | StrategyError, norm: float | None) -> Played:
        """The round with its sum; `norm` is the next one's, where it adapts."""
        tally = self._tally()
        tally.updates = list(found.survivors)
        tally.faults = [fault for fault in tally.faults if fault.client not in found.survivors]
        record = self._record(len(found.survivors))
        if isinstance(model, StrategyError):
            return Played(tally, problem=str(model), sent=self._sent, secure_sum=record)
        return Played(tally, model, sent=self._sent, secure_sum=record, clipping_norm=norm)

    def given_up(self) -> Played:
        """The round without a sum."""
        if self._cut_off and not self._attempts and self._spare <= 0:
            self.using.tell(
                f"round {self.number}: its attempt at the secure sum was cut off when the server ended; the charge "
                "stays, and no spare round is left"
            )
        return Played(self._tally(), sent=self._sent, secure_sum=self._record(0))

    def _tally(self) -> Tally:
        return Tally(faults=list(self._faults.values()), received=self._received)

    def _record(self, survivors: int) -> SecureSumRecord:
        # Those that a restart of the server cut off are the round's as well; of them only the charged ones are known.
        charged = self.state.begun.count(self.number)
        return SecureSumRecord(
            attempts=self._attempts + self._cut_off, charged=charged, survivors=survivors, dropped=self._dropped
        )


def _train(message: Message) -> tuple[ArrayRecord, Mapping[str, Any]]:
    """The model and the config of a strategy's train message."""
    return message.content.array_records[ARRAYS], message.content.config_records[CONFIG]
