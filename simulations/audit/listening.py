"""Auditors in the server's place: how much of each canary is in what comes in, or in what the model becomes."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Message

from client.planting import Planting
from server.replies import Update, read_reply
from shared_models.parameters import Layout, Parameters, from_arrays, in_order, set_parameters
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS
from shared_models.registry import build_for
from simulations.audit.canaries import CanaryRecords
from simulations.audit.gradients import gradients_of

Floats = npt.NDArray[np.float64]


class Listener(Protocol):
    """Is told of movements of the model, and at the end says how much of each canary was in them."""

    def moved(self, client: str | None, start: Parameters, movement: Parameters) -> None:
        """A client's update of a model; or, of nobody in particular, what became of the model."""
        ...

    def scores(self) -> Floats:
        """Of each canary; the higher, the more it looks planted."""
        ...


class OnCoordinates:
    """Of planted gradients and planted clients: how far their coordinates were moved.

    Where every client's update is seen, by its own client and beyond what others moved them by on average: what all
    learn is no sign of a canary.
    """

    def __init__(self, planting: Planting, layout: Layout) -> None:
        self._planting, self._layout = planting, layout
        self._places, self._owners = planting.places(), planting.owners()
        self._own, self._all = np.zeros(planting.count), np.zeros(planting.count)
        self._whole = np.zeros(layout.size)
        self._clients: set[str] = set()

    def moved(self, client: str | None, start: Parameters, movement: Parameters) -> None:
        whole = in_one_row(movement, self._layout)
        row = whole[self._places]
        if client is None:
            self._own += row
            self._whole += whole
            return
        self._all += row
        self._clients.add(client)
        if client in self._planting.clients:
            mine = self._owners == self._planting.clients.index(client)
            self._own[mine] += row[mine]

    def scores(self) -> Floats:
        # a step goes against its gradient; a client's update is the movement itself
        towards = 1.0 if self._planting.kind == "clients" else -1.0
        others = len(self._clients) - 1
        moved = self._own - (self._all - self._own) / others if others > 0 else self._own
        found: Floats = towards * self._planting.signs() * moved
        return found

    def cosines(self) -> Floats | None:
        """Of each canary's direction with all that the model moved; None where the model isn't looked at."""
        length = float(np.linalg.norm(self._whole))
        return self.scores() / length if length > 0 else None


class AlongGradients:
    """Of planted records: how far the model was moved against the gradient that each has there."""

    def __init__(self, plan: Plan, canaries: CanaryRecords, layout: Layout) -> None:
        self._canaries, self._layout = canaries, layout
        self._plan, self._model = plan, build_for(plan).train()
        self._found = np.zeros(len(canaries.records))

    def moved(self, client: str | None, start: Parameters, movement: Parameters) -> None:
        mine = np.arange(len(self._found)) if client is None else np.flatnonzero(self._canaries.owners == client)
        if not len(mine):
            return
        set_parameters(self._model, start)
        along = torch.from_numpy(in_one_row(movement, self._layout)).float()
        for part, gradients in gradients_of(self._plan, self._model, self._canaries.records.take(mine)):
            lengths = gradients.norm(dim=1).clamp(min=1e-12)
            self._found[mine[part]] -= (gradients @ along / lengths).double().numpy()

    def scores(self) -> Floats:
        return self._found


class Ear:
    """Hears what goes to and comes from clients, and tells listeners of each movement that a server can see.

    Args:
        plan: resolved. With local privacy each update is seen; else what the model becomes from round to round.
        layout: of the model.
        listeners: who are told.
    """

    def __init__(self, plan: Plan, layout: Layout, listeners: tuple[Listener, ...]) -> None:
        self._plan, self._layout, self._listeners = plan, layout, listeners
        self._alone = plan.privacy.trust in ("local", "none")
        self._last: tuple[str, Parameters] | None = None

    def __call__(self, client: str, asked: Message, reply: Message) -> None:
        """As `simulations.local_grid.Hear`."""
        if asked.metadata.message_type != "train":
            return
        arrays = asked.content.get(ARRAYS)
        if not isinstance(arrays, ArrayRecord):
            return
        if self._alone:
            update = read_reply(reply, client, self._layout, self._plan)
            if isinstance(update, Update):
                self._tell(client, from_arrays(arrays, self._layout), update.delta)
        elif self._last is None or self._last[0] != asked.metadata.group_id:
            self.became(from_arrays(arrays, self._layout), asked.metadata.group_id)

    def became(self, model: Parameters, number: str) -> None:
        """The shared model of a round, or the last one: what made it of the one before is a movement too."""
        if self._last is not None and not self._alone:
            before = self._last[1]
            self._tell(None, before, {name: model[name] - value for name, value in before.items()})
        self._last = number, model

    def _tell(self, client: str | None, start: Parameters, movement: Parameters) -> None:
        for listener in self._listeners:
            listener.moved(client, start, movement)


def in_one_row(parameters: Parameters, layout: Layout) -> Floats:
    """Values in the layout's order, as one row."""
    return np.concatenate([value.ravel() for _, value in in_order(parameters, layout)]).astype(np.float64)
