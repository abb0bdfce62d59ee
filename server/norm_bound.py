"""The mean of updates that are shortened to one norm first: a bound on what any one client can do to a model.

Sun, Kairouz, Suresh & McMahan 2019 (arXiv 1911.07963, section 3.2): each update is scaled by min(1, M / its L2 norm)
before it is averaged. A boosted update is then no stronger than anybody's. One of common length passes, whatever it
does: what bounds lengths doesn't look at directions.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from shared_models.parameters import Parameters
from shared_models.protocol import ARRAYS, METRICS, WEIGHT


class NormBound(FedAvg):
    """Averages updates that are no longer than a bound, with their weights.

    Args:
        norm: the bound M, an L2 norm over all values of an update; 0 takes the median of the round's norms, which is an
            honest client's, or between two of them, while most clients are honest.
        averaging: as of `FedAvg`.
    """

    def __init__(self, norm: float = 0.0, **averaging: Any) -> None:
        super().__init__(**averaging)
        if not (math.isfinite(norm) and norm >= 0):
            raise ValueError(f"norm = {norm}: give a number above 0, or 0 for the median of each round's norms")
        self.norm = norm
        self._start: Parameters = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The model, which updates are measured from."""
        self._start = _values(arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, of the clients' models."""
        given = list(replies)
        if not given:
            return None, None
        norms = [_distance(_model(reply), self._start) for reply in given]
        bound = self.norm or statistics.median(norms)
        total = {name: np.zeros(value.shape, np.float64) for name, value in self._start.items()}
        weights = [_weight(reply) for reply in given]
        for reply, norm, weight in zip(given, norms, weights, strict=True):
            part = weight / sum(weights) * min(1.0, bound / norm if norm else 1.0)
            for name, value in _model(reply).items():
                total[name] += part * (value.astype(np.float64) - self._start[name])
        model = {name: Array((value + total[name]).astype(np.float32)) for name, value in self._start.items()}
        return ArrayRecord(model), None


def _distance(model: Parameters, start: Parameters) -> float:
    """In float64, where no square of a float32 overflows."""
    moved = (value.astype(np.float64) - start[name] for name, value in model.items())
    return math.sqrt(math.fsum(float(np.sum(np.square(value))) for value in moved))


def _weight(reply: Message) -> int:
    weight = reply.content.metric_records[METRICS][WEIGHT]
    assert isinstance(weight, int)  # the server has looked at it (`server.replies`)
    return weight


def _model(reply: Message) -> Parameters:
    return _values(reply.content.array_records[ARRAYS])


def _values(arrays: ArrayRecord) -> Parameters:
    return {name: array.numpy().astype(np.float32, copy=False) for name, array in arrays.items()}
