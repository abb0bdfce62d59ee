"""What a simulation takes as a sum: so much for its start, a client there, a round, a client in a round, a byte.

Non-negative least squares (Lawson and Hanson, 1974) of the relative errors, for a second matters more to a short run
than to a long one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from scipy.optimize import nnls


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much of everything there is to do.

    Attributes:
        starts: of a simulation: 1, or 0 for what came after.
        clients: there are at that start, whether or not they ever take part.
        rounds: number of them.
        client_rounds: of all rounds, how many clients took part, added up.
        bytes: of parameters, to clients and back.
    """

    starts: int = 0
    clients: int = 0
    rounds: int = 0
    client_rounds: int = 0
    bytes: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Seconds for one of each.

    Attributes:
        start: before the first round, however many clients there are.
        client: before the first round, for each client there is.
        round: for each round, whoever takes part.
        client_round: for each client in each round.
        byte: for each byte of parameters; it stands for all that grows with the network, its arithmetic too.
        error: largest relative error among the observations, as a part.
    """

    start: float
    client: float
    round: float
    client_round: float
    byte: float
    error: float

    def seconds(self, load: Load) -> float:
        """What a load takes."""
        return (
            self.start * load.starts
            + self.client * load.clients
            + self.round * load.rounds
            + self.client_round * load.client_rounds
            + self.byte * load.bytes
        )


def fit(observations: Sequence[tuple[Load, float]]) -> CostModel:
    """The model that the observed seconds follow best.

    Args:
        observations: loads, and the seconds each took, above 0.

    Raises:
        ValueError: they don't tell the parts of the model apart, or a time is not above 0.
    """
    seconds = np.array([taken for _, taken in observations], dtype=np.float64)
    if not np.all(seconds > 0):
        raise ValueError("a load that took no time says nothing")
    loads = np.array([astuple(load) for load, _ in observations], dtype=np.float64).reshape(-1, len(fields(Load)))
    relative = loads / seconds[:, None]
    scale = relative.max(axis=0, initial=0.0)
    if not np.all(scale > 0) or np.linalg.matrix_rank(relative / scale) < len(fields(Load)):
        raise ValueError(
            "too few different loads to tell start, clients, rounds and bytes apart; vary sizes and the network"
        )
    found, _ = nnls(relative / scale, np.ones(len(seconds)))
    start, client, each_round, client_round, byte = (float(value) for value in found / scale)
    error = float(np.abs(relative @ (found / scale) - 1.0).max())
    return CostModel(start=start, client=client, round=each_round, client_round=client_round, byte=byte, error=error)
