"""What a run has done so far: all a summary or a resumed run needs beside the model itself."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from server.replies import ClientFault, Head
from server.stopping import Progress
from shared_models.faults import Fault


@dataclass
class ClientTally:
    """One client's part in the run.

    Attributes:
        rounds: number of rounds whose model its update went into; the federation counts them.
        charged: rounds it was asked to train and did not refuse: what its budget has paid for. A round that is asked
            for again in the same words is paid for once.
        evaluated: the same of rounds after which it was asked to judge the model.
        refused: rounds it refused.
        reported: largest epsilon that the client itself, in replies or a statement, said it had spent in this run; 0
            before it said any.
        withdrawn: rounds for which its claim does not hold, because it failed in a way that may tell something of its
            data (rule 5).
        unprotected: rounds in which its site let out fields as they are.
        contradicted: rounds in which its ledger, as it told, lacked what it had told of before.
        head: newest entry of its ledger that it told of.
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

    def note_unprotected(self, round_number: int) -> None:
        """Note that the site let out fields as they are."""
        _add(self.unprotected, round_number)


@dataclass
class RunState:
    """Everything but parameters and strategy state.

    Attributes that are not plain counts:
        run: the server's own id of the run, by which clients tell a request that is made again from a new one.
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

    def client(self, name: str) -> ClientTally:
        """A client's tally, made where there is none."""
        return self.clients.setdefault(name, ClientTally())

    def note_client(self, round_number: int, client: str, fault: ClientFault | None) -> None:
        """Note one asked client's outcome of a round of training.

        A charge is kept unless the client said that it refused. Any other failure withdraws the claim for the round
        (rule 5), but for a missed deadline: what time tells is listed as unprotected (rule 12).
        """
        self._note(self.client(client).charged, round_number, client, fault)

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
        """Plain dictionaries for a checkpoint."""
        return asdict(self)

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


def _tally(raw: Mapping[str, Any]) -> ClientTally:
    head = raw["head"]
    return ClientTally(**{**raw, "head": None if head is None else Head(**head)})


def _add(rounds: list[int], number: int) -> None:
    if number not in rounds:
        rounds.append(number)
