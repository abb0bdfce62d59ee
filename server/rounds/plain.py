"""A synchronous round: wait for the cohort's replies, then take one step.

A round consumes a stream of replies and yields steps. This one yields a single step at the end of the stream; a
round that steps whenever a buffer is full has the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from server.kept_models import KeptModels
from server.reduce import ExactMean, ReduceError
from server.replies import ClientFault, Head, Update
from shared_models.faults import Fault
from shared_models.parameters import Parameters


@dataclass(frozen=True)
class Contribution:
    """What a strategy gets to aggregate as one reply.

    Attributes:
        parameters: a model, not to be written to.
        weight: its weight.
        client: whose it is; None for a mean of many.
        clients: how many clients' it is.
        let_go: gives back the memory that looking at the model took, where it lies in a file.
    """

    parameters: Parameters
    weight: int
    client: str | None = None
    let_go: Callable[[], None] = lambda: None
    clients: int = 1


@dataclass
class Tally:
    """What is known of a round's replies beside their content."""

    updates: list[str] = field(default_factory=list)
    faults: list[ClientFault] = field(default_factory=list)
    epsilons: dict[str, float] = field(default_factory=dict)
    heads: dict[str, Head] = field(default_factory=dict)
    unprotected: list[str] = field(default_factory=list)
    received: int = 0
    examples: int | None = None
    _losses: list[tuple[int, float]] = field(default_factory=list)

    def note(self, update: Update) -> None:
        """Take note of a good update."""
        self.updates.append(update.client)
        self.received += update.received
        self.heads[update.client] = update.head
        if update.unprotected:
            self.unprotected.append(update.client)
        if update.epsilon is not None:
            self.epsilons[update.client] = update.epsilon
        if update.examples is not None:
            self.examples = (self.examples or 0) + update.examples
        if update.train_loss is not None:
            self._losses.append((update.weight, update.train_loss))

    @property
    def train_loss(self) -> float | None:
        """Mean training loss of the round's clients, where they may tell it; exact, so in any order the same."""
        if not self._losses:
            return None
        total = sum(weight for weight, _ in self._losses)
        return math.fsum(weight * loss for weight, loss in self._losses) / total


class Round(Protocol):
    """Turns the replies of a round into steps of the shared model."""

    def steps(
        self, start: Parameters, replies: Iterable[Update | ClientFault], tally: Tally
    ) -> Iterator[list[Contribution]]:
        """Consume replies and yield, at each step, what the strategy shall aggregate (never an empty list).

        `start` is the model the cohort was sent; `tally` is filled as replies come.
        """
        ...


class MeanRound:
    """Folds every update into one mean as it arrives: memory does not grow with the cohort."""

    def steps(
        self, start: Parameters, replies: Iterable[Update | ClientFault], tally: Tally
    ) -> Iterator[list[Contribution]]:
        mean = ExactMean()
        for reply in replies:
            _fold(mean, reply, tally)
            del reply  # or it would be held while the next one is on its way
        if mean.count:
            model, clients = mean.result(), mean.count
            del mean
            for name, value in start.items():
                np.add(value, model[name], out=model[name])
            yield [Contribution(model, weight=1, clients=clients)]


def _fold(mean: ExactMean, reply: Update | ClientFault, tally: Tally) -> None:
    if isinstance(reply, ClientFault):
        tally.faults.append(reply)
        return
    try:
        mean.add(reply.delta, reply.weight)
    except ReduceError:
        tally.faults.append(ClientFault(reply.client, Fault.NON_FINITE))
    else:
        tally.note(reply)


class EveryReplyRound:
    """Hands every single update to the strategy, as robust ones need it, in the cohort's order.

    Until all are there they are kept as models, a bounded part of them in memory (`server.kept_models`).

    Args:
        cohort: its clients.
        folder: for the file with the rest; None for the system's folder for temporary files.
    """

    def __init__(self, cohort: Iterable[str], folder: Path | None = None) -> None:
        self._order = {client: place for place, client in enumerate(cohort)}
        self._folder = folder

    def steps(
        self, start: Parameters, replies: Iterable[Update | ClientFault], tally: Tally
    ) -> Iterator[list[Contribution]]:
        size = sum(value.nbytes for value in start.values())
        updates: list[Update] = []
        kept = KeptModels(self._folder)
        try:
            for reply in replies:
                if isinstance(reply, ClientFault):
                    tally.faults.append(reply)
                else:
                    kept.put(reply.client, _moved(start, reply.delta), size)
                    updates.append(replace(reply, delta={}))
                del reply  # or it would be held while the next one is on its way
            updates.sort(key=lambda update: self._order[update.client])
            for update in updates:
                tally.note(update)
            if updates:
                yield [Contribution(kept.get(u.client), u.weight, u.client, kept.let_go) for u in updates]
        finally:
            kept.close()


def moved(start: Parameters, delta: Parameters) -> Parameters:
    """A model moved by an update, as float32."""
    return dict(_moved(start, delta))


def _moved(start: Parameters, delta: Parameters) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """One array after the other."""
    for name, value in start.items():
        yield name, np.asarray(value + delta[name], dtype=np.float32)
