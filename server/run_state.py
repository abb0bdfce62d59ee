"""What a run has done so far: all a summary or a resumed run needs beside the model itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from security.secure_sum.attempt import Phase
from server.replies import ClientFault, Head
from server.stopping import Progress
from shared_models.faults import Fault

# They follow from messages and from who is there, not from data (rule 5); nor do they say that nothing was charged.
_OF_SECURE_SUMS = (Fault.SECURE_SUM_REFUSED, Fault.SECURE_SUM_LOST, Fault.SECURE_SUM_ABORTED)

_SKIPPED = 1000  # far more than are announced between two checkpoints


@dataclass
class ClientTally:
    """One client's part in the run.

    Attributes:
        rounds: number of rounds whose model its update went into; the federation counts them.
        charged: rounds it was asked to train and did not refuse: what its budget has paid for. A round that is asked
            for again in the same words is paid for once.
        evaluated: the same of rounds after which it was asked to judge the model.
        again: rounds of `charged` that it was charged for once more, in another attempt at a secure sum; once for each.
        refused: rounds it refused.
        reported: largest epsilon that the client itself, in replies or a statement, said it had spent in this run; 0
            before it said any.
        withdrawn: rounds for which its claim does not hold, because it failed in a way that may tell something of its
            data (rule 5).
        unprotected: rounds in which its site let out fields as they are.
        contradicted: rounds in which its ledger, as it told, lacked what it had told of before.
        head: newest entry of its ledger that it told of.
        asked: with correlated noise, the rounds it was asked to train in, from the first on, whether or not it
            answered; on disk before it is asked.
        counted: with SCAFFOLD, the last round whose model its update went into.
    """

    rounds: int = 0
    charged: list[int] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    reported: float = 0.0
    withdrawn: list[int] = field(default_factory=list)
    unprotected: list[int] = field(default_factory=list)
    contradicted: list[int] = field(default_factory=list)
    head: Head | None = None
    again: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    counted: int = 0

    def tell(self, round_number: int, *, epsilon: float | None, head: Head) -> bool:
        """Note what a good reply says of the client's books.

        Returns:
            False if that can't be of the ledger it told of before: a chain only grows.
        """
        if epsilon is not None:
            self.reported = max(self.reported, epsilon)
        known = self.head
        if known is not None and head != known and head.position <= known.position:
            _add(self.contradicted, round_number)
            return False
        self.head = head
        return True

    @property
    def trainings(self) -> int:
        """How often it was charged for training."""
        return len(self.charged) + len(self.again)

    def charge_attempt(self, round_number: int) -> None:
        """Charge an attempt at a secure sum: each one is trained for and paid for anew."""
        (self.again if round_number in self.charged else self.charged).append(round_number)

    def uncharge_attempt(self, round_number: int) -> None:
        """Take the newest charge of a round back: the client said that it refused."""
        (self.again if round_number in self.again else self.charged).remove(round_number)

    def ask(self, round_number: int) -> None:
        """Note that it will be asked to train in a round; once, however often it is asked."""
        _add(self.asked, round_number)

    def note_unprotected(self, round_number: int) -> None:
        """Note that the site let out fields as they are."""
        _add(self.unprotected, round_number)


@dataclass
class RunState:
    """Everything but parameters and strategy state.

    Attributes that are not plain counts:
        run: the server's own id of the run, by which clients tell a request that is made again from a new one.
        attempt: largest number of an attempt at a secure sum that clients may have heard of.
        begun: round of each attempt that asked for masked vectors, in order; on disk before anybody is asked.
        given_up: how many of the last rounds, one after the other, were given up without a sum.
        clipping_norm: of the next round, where it adapts; None before the first. It follows from what was released.
        by_class: what clients released by class in the last evaluation, as `ClassCounts.to_json`.
        released: with correlated noise, SHA-256 of what the last round released: names the noise that goes with it.
    """

    run: str = field(default_factory=lambda: secrets.token_hex(16))
    round: int = 0
    progress: Progress = field(default_factory=Progress)
    clients: dict[str, ClientTally] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    first_round_seconds: float | None = None
    evaluation: dict[str, float] | None = None
    by_class: dict[str, Any] | None = None
    attempt: int = 0
    begun: list[int] = field(default_factory=list)
    given_up: int = 0
    clipping_norm: float | None = None
    released: str | None = None

    @property
    def repeated(self) -> int:
        """Attempts that were charged beyond the first of their round."""
        return len(self.begun) - len(set(self.begun))

    def skip_attempts(self) -> None:
        """After a restart: attempts may have been announced since these books were written, and none is repeated."""
        self.attempt += _SKIPPED

    def begin_attempt(self, round_number: int, clients: Iterable[str]) -> None:
        """Charge these clients for an attempt that will now ask for their masked vectors."""
        self.begun.append(round_number)
        for client in clients:
            self.client(client).charge_attempt(round_number)

    def note_attempt_fault(self, round_number: int, phase: Phase, fault: ClientFault) -> None:
        """Note a client that fell out of an attempt at a secure sum.

        Only in the masked phase is data touched: there a refusal takes the charge back, and from there on a failure
        withdraws the claim for the round (rule 5).
        """
        line = {"round": round_number, "client": fault.client, "reason": fault.fault.reason}
        if line not in self.faults:
            self.faults.append(line)
        tally = self.client(fault.client)
        if fault.fault in _OF_SECURE_SUMS or fault.fault is Fault.TIMED_OUT:
            return
        if fault.refused:
            _add(tally.refused, round_number)
            if phase is Phase.MASKED:
                tally.uncharge_attempt(round_number)
        elif phase not in (Phase.KEYS, Phase.SHARES):
            _add(tally.withdrawn, round_number)

    def client(self, name: str) -> ClientTally:
        """A client's tally, made where there is none."""
        return self.clients.setdefault(name, ClientTally())

    def note_client(self, round_number: int, client: str, fault: ClientFault | None) -> None:
        """Note one asked client's outcome of a round of training.

        A charge is kept unless the client said that it refused. Any other failure withdraws the claim for the round
        (rule 5), but for a missed deadline: what time tells is listed as unprotected (rule 12).
        """
        self._note(self.client(client).charged, round_number, client, fault)

    def note_enrolment(self, fault: ClientFault) -> None:
        """Note a client that didn't pay for a whole run beforehand: before its first round, so by no data."""
        line = {"round": 1, "client": fault.client, "reason": fault.fault.reason}
        if line not in self.faults:
            self.faults.append(line)
        if fault.refused:
            _add(self.client(fault.client).refused, 1)

    def take_back(self, round_number: int, fault: ClientFault, *, paid: bool = False) -> None:
        """Note that a client which was charged for a round has refused it; one that `paid` for the run still owes."""
        if not paid:
            self.client(fault.client).charged.remove(round_number)
        self._note([], round_number, fault.client, fault)

    def note_evaluation(self, round_number: int, client: str, fault: ClientFault | None) -> None:
        """Note one asked client's outcome of an evaluation, by the same rules."""
        self._note(self.client(client).evaluated, round_number, client, fault)

    def _note(self, charged: list[int], round_number: int, client: str, fault: ClientFault | None) -> None:
        tally = self.client(client)
        if fault is None:
            _add(charged, round_number)
            return
        self.faults.append({"round": round_number, "client": client, "reason": fault.fault.reason})
        if fault.refused:
            _add(tally.refused, round_number)
            return
        _add(charged, round_number)
        if fault.fault is not Fault.TIMED_OUT:
            _add(tally.withdrawn, round_number)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries for a checkpoint. Lists in them are the books' own: write them down, don't change them."""
        # Not `asdict`, which copies whatever it finds: each round would pay for every round of every client before it.
        clients = {name: {**vars(tally), "head": _plain(tally.head)} for name, tally in self.clients.items()}
        return {**vars(self), "progress": asdict(self.progress), "clients": clients}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> RunState:
        """The state a checkpoint holds.

        Raises:
            TypeError, KeyError: it holds something else.
        """
        values = dict(raw)
        values["progress"] = Progress(**values["progress"])
        values["clients"] = {name: _tally(tally) for name, tally in values["clients"].items()}
        return cls(**values)


def _plain(head: Head | None) -> dict[str, Any] | None:
    return None if head is None else dict(vars(head))


def _tally(raw: Mapping[str, Any]) -> ClientTally:
    head = raw["head"]
    return ClientTally(**{**raw, "head": None if head is None else Head(**head)})


def _add(rounds: list[int], number: int) -> None:
    if number not in rounds:
        rounds.append(number)
