"""A run of a plan with canaries among its clients, and how much of each was found in what the server got."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from client.planting import Kind, Planting
from server.replies import Update, read_reply
from server.run_folder import RunFolder
from shared_models.cards import card_for
from shared_models.parameters import Layout, Parameters, get_parameters, in_order
from shared_models.plan import Plan
from shared_models.plan_personal import shared_layout
from shared_models.registry import build_for
from simulations.run import Settings, start_run

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What came of a run with canaries.

    Attributes:
        planting: what was planted.
        scores: of each canary, how much of it was found; the higher, the more it looks planted.
        coins: whether it was.
        folder: of the run.
    """

    planting: Planting
    scores: Floats
    coins: npt.NDArray[np.bool_]
    folder: RunFolder


def planting_for(plan: Plan, kind: Kind, count: int, clients: tuple[str, ...], secret: bytes | None = None) -> Planting:
    """Canaries for a resolved plan.

    Args:
        plan: resolved.
        kind: of canary.
        count: how many.
        clients: who they are dealt to.
        secret: 32 bytes; None for fresh ones.
    """
    return Planting(
        kind=kind,
        count=count,
        secret=(secret or secrets.token_bytes(32)).hex(),
        clients=clients,
        size=layout_of_plan(plan).size,
        clipping_norm=plan.privacy.clipping_norm,
        classes=len(card_for(plan.data).classes),
    )


def layout_of_plan(plan: Plan) -> Layout:
    """Of what the plan's clients send."""
    return shared_layout(plan, build_for(plan))


class Listener:
    """Adds up, of each planted coordinate, what its client's updates moved it by: as a server sees them."""

    def __init__(self, plan: Plan, planting: Planting, layout: Layout) -> None:
        self._plan, self._layout, self._planting = plan, layout, planting
        self._places, self._owners = planting.places(), planting.owners()
        self.moved = np.zeros(planting.count)

    def __call__(self, client: str, asked: Message, reply: Message) -> None:
        if asked.metadata.message_type != "train" or client not in self._planting.clients:
            return
        update = read_reply(reply, client, self._layout, self._plan)
        if isinstance(update, Update):
            mine = self._owners == self._planting.clients.index(client)
            self.moved[mine] += in_one_row(update.delta, self._layout)[self._places[mine]]


def look_for_gradients(plan: Plan, planting: Planting, out: Path, settings: Settings) -> Looked:
    """Play a plan with planted gradients, or planted clients, and look for each on its coordinate.

    Where updates reach the server one by one, in its own client's; else in what the model has become.

    Raises:
        UsageError, RunError: as for `start_run`.
    """
    layout = layout_of_plan(plan)
    listener = Listener(plan, planting, layout) if plan.privacy.trust == "local" else None
    folder, outcome = start_run(plan, out, replace(settings, planting=planting, hear=listener))
    if listener is not None:
        moved = listener.moved
    else:
        before = in_one_row(get_parameters(build_for(plan)), layout)
        moved = (in_one_row(outcome.parameters, layout) - before)[planting.places()]
    # a step goes against its gradient; a client's update is the movement itself
    signs = planting.signs() * (1.0 if planting.kind == "clients" else -1.0)
    return Looked(planting=planting, scores=signs * moved, coins=planting.coins(), folder=folder)


def in_one_row(parameters: Parameters, layout: Layout) -> Floats:
    """Values in the layout's order, as one row."""
    return np.concatenate([value.ravel() for _, value in in_order(parameters, layout)]).astype(np.float64)
