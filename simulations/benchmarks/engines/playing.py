"""What a contender is asked for and what it answers: one JSON text each way. Nothing here needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from simulations.benchmarks.engines.works import Work

# One thread a process, whoever trains; no GPU; nobody reports that it was used.
ENVIRONMENT: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a contender plays.

    Attributes:
        contender: who: floor, inline, ray, flower, pfl.
        work: what is trained.
        data: path of its arrays, an .npz with `x` and `y`; user u has the u-th `work.records` of them (Veil deals them
            out itself, by its plan's partition).
        rounds: how many.
        processes: that train at once, where the contender can.
        seed: of weights, cohorts and batches.
        dp_engine: for Veil: what makes the gradients of single examples.
    """

    contender: str
    work: Work
    data: str
    rounds: int
    processes: int
    seed: int = 1
    dp_engine: str = "bookkeeping"

    def to_text(self) -> str:
        """For a command line."""
        return json.dumps({**asdict(self), "work": self.work.as_json()})

    @classmethod
    def from_text(cls, text: str) -> Task:
        """The same again."""
        values = json.loads(text)
        return cls(**{**values, "work": Work.from_json(values["work"])})


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a contender tells. Moments are of the machine's monotonic clock, which all processes share.

    Attributes:
        imported: when its libraries were imported.
        rounds: when each round was over, its model made.
        updates: in each round, how many clients' updates are in the model.
        change: Euclidean distance from the first model to the last: that training took place can be seen.
        parameters: of the network.
        versions: of what it trained with.
        ended: when all was over, the end's own work too, where the contender has any.
        alone: most bytes that the leading process had by itself, where it knows.
    """

    imported: float
    rounds: list[float]
    updates: list[int]
    change: float
    parameters: int
    versions: dict[str, str]
    ended: float | None = None
    alone: float | None = None

    def to_text(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def read(text: str) -> Played | str:
    """A contender's answer from all that it printed, or why it has none.

    Raises:
        ValueError: there is no answer among it.
    """
    for line in reversed(text.splitlines()):
        with suppress(json.JSONDecodeError):  # contenders print whatever they like beside it
            values: object = json.loads(line)
            if isinstance(values, dict):
                return str(values["error"]) if "error" in values else Played(**values)
    raise ValueError("it told nothing")


def in_one_line(error: BaseException) -> str:
    """Kind and first line of an error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def be_alone() -> None:
    """Set this process up as every contender's is."""
    os.environ.update(ENVIRONMENT)
