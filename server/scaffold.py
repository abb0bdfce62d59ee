"""SCAFFOLD as a Flower strategy (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1, option II).

The server keeps c, the mean of all clients' control variates, and sends it beside the model. What the variates of a
round's clients gain follows from their updates alone (`shared_models.plan_scaffold`), and so does the sum of it from
the mean update: c gains |S| / N times `variate_gain` of that mean. No client's variate is held here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from shared_models.parameters import Parameters, all_finite
from shared_models.plan_scaffold import variate_gain
from shared_models.protocol import ARRAYS, CLIENTS, CONTROL, METRICS


class Scaffold(FedAvg):
    """Averages updates, and keeps the mean of all clients' variates.

    Args:
        eta: global step size, above 0; 1 takes the average itself.
        averaging: as of `FedAvg`.

    Attributes:
        control: c, by name; zeros before the first round.
        population: N, how many clients there are; it stays what it was when the run began.
        steps: K, of a client in a round.
        rate: of the clients' steps, by round.
    """

    def __init__(self, eta: float = 1.0, **averaging: Any) -> None:
        super().__init__(**averaging)
        if not (math.isfinite(eta) and eta > 0):
            raise ValueError(f"eta = {eta}: give a number above 0")
        self.eta = eta
        self.control: Parameters = {}
        self.population = 0
        self.steps = 1
        self.rate: Callable[[int], float] = lambda _: 1.0
        self._start: Parameters = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The model and c, for each client."""
        self._start = _values(arrays)
        if not self.control:
            self.control = {name: np.zeros_like(value) for name, value in self._start.items()}
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for content in {id(message.content): message.content for message in messages}.values():
            content[CONTROL] = ArrayRecord({name: Array(self.control[name]) for name in self._start})
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The next model, and the next c, of the one reply that holds the mean of so many clients' models."""
        (reply,) = replies
        metrics, arrays = reply.content[METRICS], reply.content[ARRAYS]
        assert isinstance(metrics, MetricRecord)
        assert isinstance(arrays, ArrayRecord)
        clients, model = metrics[CLIENTS], _values(arrays)
        assert isinstance(clients, int)
        update = {name: value - self._start[name] for name, value in model.items()}
        gain = variate_gain(self.control, update, steps=self.steps, rate=self.rate(server_round))
        part = np.float32(clients / self.population)
        if all_finite(gain):  # a learning rate that has all but vanished tells nothing of a gradient
            self.control = {name: self.control[name] + part * gain[name] for name in gain}
        if self.eta != 1:
            model = {name: self._start[name] + np.float32(self.eta) * value for name, value in update.items()}
        return ArrayRecord({name: Array(value) for name, value in model.items()}), None


def _values(arrays: ArrayRecord) -> Parameters:
    return {name: array.numpy().astype(np.float32, copy=False) for name, array in arrays.items()}
