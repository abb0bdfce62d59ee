"""One attempt at a secure sum, over Flower messages: five phases, each one message to whoever is left and its reply.

`security.secure_sum` says what the messages hold and who is left. Here is how they travel, on any grid: each phase has
a deadline of its own and a group id of its own, so that a late word of an earlier phase or attempt is nobody's. Masked
vectors are folded in as they arrive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from security.secure_sum.aborts import Abort, SecureSumError
from security.secure_sum.attempt import Attempt, Phase
from security.secure_sum.server import SumServer
from server.replies import ClientFault
from server.secure_replies import Masked, Words, read_masked, read_words
from server.streams import answers
from shared_models.faults import Fault
from shared_models.parameters import wire_bytes
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    SECURE_ATTEMPT,
    SECURE_KEYS,
    SECURE_MESSAGE,
    SECURE_MODEL,
    SECURE_SHARES,
    SECURE_SURVIVORS,
    SECURE_UNMASK,
)

Answer = Words | Masked | ClientFault

_TYPES: Mapping[Phase, str] = {
    Phase.KEYS: SECURE_KEYS,
    Phase.SHARES: SECURE_SHARES,
    Phase.MASKED: "train",
    Phase.SURVIVORS: SECURE_SURVIVORS,
    Phase.UNMASK: SECURE_UNMASK,
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How an attempt's messages travel.

    Attributes:
        grid: how clients are reached.
        nodes: node of each client of the cohort.
        config: what every request says of run, plan, layout and round.
        model: digest of the model that will be trained, which clients hear of before they offer keys.
        train: what a train request holds beside, of each client: the model, and the config that the strategy wrote.
        short: seconds for each phase but the masked one; None for as long as the grid waits.
        long: seconds for the masked one, in which clients train; None for as long as the grid waits.
        needed: fewer clients in a sum are too few, whatever the protocol says.
    """

    grid: Grid
    nodes: Mapping[str, int]
    config: Mapping[str, Any]
    model: str
    train: Mapping[str, tuple[ArrayRecord, Mapping[str, Any]]]
    short: float | None
    long: float | None
    needed: int


@dataclass
class Attempted:
    """What came of an attempt.

    Attributes:
        total: the sum of the survivors' vectors; None if it was not opened.
        survivors: whose vectors are in it.
        abort: why it was not opened.
        phase: in which phase it was aborted.
        faults: who fell out, in which phase and why, in the order in which it was found out.
        sent, received: bytes on the wire.
    """

    total: npt.NDArray[Any] | None = None
    survivors: tuple[str, ...] = ()
    abort: Abort | None = None
    phase: Phase = Phase.KEYS
    faults: list[tuple[Phase, ClientFault]] = field(default_factory=list)
    sent: int = 0
    received: int = 0

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Who fell out in each phase."""
        return {str(phase): sorted({fault.client for at, fault in self.faults if at is phase}) for phase in _TYPES}


class Attempting:
    """Plays one attempt.

    Args:
        attempt: what is attempted, under a number that no client has heard of.
        roster: public identity of each client.
        way: how messages travel.
        begin: is told who will be asked for a masked vector, before anybody is: it has charged them, and the attempt's
            number is on the disk, when it returns.
        heard: is told of each masked vector that came; what it says of its client's books counts, whatever becomes of
            the sum.
        fell: is told of each client that falls out, and in which phase.
    """

    def __init__(
        self,
        attempt: Attempt,
        roster: Mapping[str, str],
        way: Way,
        *,
        begin: Callable[[Sequence[str]], None],
        heard: Callable[[Masked], None],
        fell: Callable[[Phase, ClientFault], None],
    ) -> None:
        self._attempt = attempt
        self._server = SumServer(attempt, roster)
        self._way = way
        self._begin = begin
        self._heard = heard
        self._fell = fell
        self._found = Attempted()

    def play(self) -> Attempted:
        """Play the phases, up to the sum or to the first that too few are left of: then nothing was opened."""
        server, found, cohort = self._server, self._found, self._attempt.cohort
        try:
            self._ask(Phase.KEYS, dict.fromkeys(cohort, server.announcement()), self._words(server.take_offer))
            self._check_number(server.answered)
            keys = server.key_list()
            self._ask(Phase.SHARES, dict.fromkeys(server.waiting_for, keys), self._words(server.take_shares))
            inboxes = server.inboxes()
            self._name_lonely()
            self._check_number(inboxes)
            self._begin(list(inboxes))
            self._ask(Phase.MASKED, inboxes, self._masked)
            self._check_number(server.answered)
            survivors = server.survivors()
            self._ask(
                Phase.SURVIVORS, dict.fromkeys(server.waiting_for, survivors), self._words(server.take_confirmation)
            )
            confirmed = server.confirmations()
            self._ask(Phase.UNMASK, dict.fromkeys(server.waiting_for, confirmed), self._words(server.take_answer))
            found.total = server.result()
            found.survivors = server.survivor_names
        except SecureSumError as error:
            found.abort = error.reason
        for client in liars(server.wrong_shares):
            self._drop(ClientFault(client, Fault.SECURE_SUM_BROKEN))
        return found

    def _ask(self, phase: Phase, words: Mapping[str, bytes], take: Callable[[Iterator[Answer]], None]) -> None:
        """Send each client its word of a phase, and take what comes back before the deadline."""
        found, way = self._found, self._way
        found.phase = phase
        messages = []
        for client, word in words.items():
            content = self._content(phase, client, word)
            group = f"{self._attempt.round} attempt {self._attempt.number} {phase}"
            messages.append(Message(content, way.nodes[client], _TYPES[phase], group_id=group))
            arrays = content.get(ARRAYS)
            found.sent += len(word) + (wire_bytes(arrays) if isinstance(arrays, ArrayRecord) else 0)
        take(self._answers(phase, messages))

    def _content(self, phase: Phase, client: str, word: bytes) -> RecordDict:
        config = {**self._way.config, SECURE_MESSAGE: word}
        if phase is Phase.KEYS:
            config[SECURE_MODEL] = self._way.model
        else:
            config[SECURE_ATTEMPT] = self._attempt.digest
        if phase is not Phase.MASKED:
            return RecordDict({CONFIG: ConfigRecord(config)})
        arrays, said = self._way.train[client]
        return RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({**said, **config})})

    def _answers(self, phase: Phase, messages: Sequence[Message]) -> Iterator[Answer]:
        masked, attempt = phase is Phase.MASKED, self._attempt

        def read(reply: Message, client: str) -> Answer:
            if masked:
                return read_masked(reply, client, length=attempt.length, type_name=attempt.dtype.name)
            return read_words(reply, client)

        clients = {node: client for client, node in self._way.nodes.items()}
        timeout = self._way.long if masked else self._way.short
        yield from answers(self._way.grid, messages, clients, read, timeout=timeout)

    def _words(self, take: Callable[[str, bytes], None]) -> Callable[[Iterator[Answer]], None]:
        def taking(replies: Iterator[Answer]) -> None:
            for reply in replies:
                if isinstance(reply, Words):
                    self._found.received += reply.received
                    with self._broken(reply.client):
                        take(reply.client, reply.message)
                elif isinstance(reply, ClientFault):
                    self._drop(reply)

        return taking

    def _masked(self, replies: Iterator[Answer]) -> None:
        for reply in replies:
            if isinstance(reply, Masked):
                self._found.received += reply.received
                self._heard(reply)
                with self._broken(reply.client):
                    self._server.take_masked(reply.client, reply.vector)
            elif isinstance(reply, ClientFault):
                self._drop(reply)

    @contextmanager
    def _broken(self, client: str) -> Iterator[None]:
        """A word that the protocol refuses is its sender's fault; the attempt goes on without it."""
        try:
            yield
        except SecureSumError:
            self._drop(ClientFault(client, Fault.SECURE_SUM_BROKEN))

    def _drop(self, fault: ClientFault) -> None:
        self._found.faults.append((self._found.phase, fault))
        self._server.drop(fault.client)
        self._fell(self._found.phase, fault)

    def _name_lonely(self) -> None:
        """Those who shared with too many that fell out: nobody could take their masks away."""
        known = {fault.client for _, fault in self._found.faults}
        for client in sorted(self._server.dropped.keys() - known):
            self._drop(ClientFault(client, Fault.SECURE_SUM_ABORTED))

    def _check_number(self, clients: Collection[str]) -> None:
        if len(clients) < self._way.needed:
            raise SecureSumError(Abort.TOO_FEW_CLIENTS)


def liars(wrong_shares: Iterable[tuple[str, str]]) -> list[str]:
    """Who gave wrong shares, as owner or as holder, as far as it can be told: who explains most of them.

    Of a single wrong share either of the two may have lied; then nobody is named.

    Args:
        wrong_shares: (whose secret, who held it).
    """
    left, found = set(wrong_shares), []
    while left:
        counts = Counter(name for pair in left for name in pair)
        (name, most), *others = counts.most_common(2)
        if others and others[0][1] == most:
            break
        found.append(name)
        left = {pair for pair in left if name not in pair}
    return sorted(found)
