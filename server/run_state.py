"""What a run has done so far: all a summary or a resumed run needs beside the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from server.replies import ClientFault
from server.stopping import Progress
from shared_models.faults import Fault


@dataclass
class ClientTally:
    """One client's part in the run.

    Attributes:
        rounds: rounds its update went into the model.
        charged: rounds it was asked to train and did not refuse: what its budget has paid for.
        refused: rounds it refused.
        reported: largest epsilon the client itself said it had spent in this run; 0 before it said any.
        withdrawn: rounds for which its claim does not hold, because it failed in a way that may tell something of its
            data (rule 5).
    """

    rounds: int = 0
    charged: int = 0
    refused: int = 0
    reported: float = 0.0
    withdrawn: list[int] = field(default_factory=list)


@dataclass
class RunState:
    """Everything but parameters and strategy state.

    Attributes that are not plain counts:
        replayed: rounds that an interruption cut off after they had begun, and that were played again: charged twice.
    """

    round: int = 0
    progress: Progress = field(default_factory=Progress)
    clients: dict[str, ClientTally] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    first_round_seconds: float | None = None
    evaluation: dict[str, float] | None = None
    replayed: list[int] = field(default_factory=list)

    def note_cut_off(self, round_number: int, cohort: Sequence[str]) -> None:
        """Keep the charges of a round that was begun and never finished: its clients may have answered."""
        self.replayed.append(round_number)
        for client in cohort:
            self.clients.setdefault(client, ClientTally()).charged += 1

    def note_client(self, round_number: int, client: str, fault: ClientFault | None) -> None:
        """Count one asked client's outcome of a round.

        A charge is kept unless the client said that it refused. Any other failure withdraws the claim for the round
        (rule 5), but for a missed deadline: what time tells is listed as unprotected (rule 12).
        """
        tally = self.clients.setdefault(client, ClientTally())
        if fault is None:
            tally.charged += 1
            tally.rounds += 1
            return
        self.faults.append({"round": round_number, "client": client, "reason": fault.fault.reason})
        if fault.refused:
            tally.refused += 1
            return
        tally.charged += 1
        if fault.fault is not Fault.TIMED_OUT:
            tally.withdrawn.append(round_number)

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
        values["clients"] = {name: ClientTally(**tally) for name, tally in values["clients"].items()}
        return cls(**values)
