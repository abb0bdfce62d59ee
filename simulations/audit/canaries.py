"""An auditor's canaries, as the auditor knows them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.contribution import flat
from client.datasets.features import seen_parts, seen_records
from client.datasets.records import Records
from client.planting import Kind, Planting, canary_records
from client.trainer import seeded, train_plain
from client.workplace import split_key
from shared_models.cards import card_for
from shared_models.parameters import Layout, get_parameters
from shared_models.plan import Plan
from shared_models.plan_personal import shared_layout
from shared_models.registry import build_for
from shared_models.seeds import derive_seed
from simulations.audit.gradients import gradients_of

_LOOKED_AT: Final = 16  # clients, and records of each, that tell what is quiet


@dataclass(frozen=True, kw_only=True)
class CanaryRecords:
    """Canaries that are records.

    Attributes:
        records: the canaries, with the labels they are planted with.
        owners: id of each one's client.
        coins: whether each is planted.
    """

    records: Records
    owners: npt.NDArray[np.str_]
    coins: npt.NDArray[np.bool_]


def layout_of_plan(plan: Plan) -> Layout:
    """Of what the plan's clients send."""
    return shared_layout(plan, build_for(plan))


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
        clipping_norm=plan.privacy.clipping_norm,
        classes=len(card_for(plan.data).classes),
        coordinates=quiet_coordinates(plan, count) if kind in ("gradients", "clients") else (),
    )


def quiet_coordinates(plan: Plan, count: int) -> tuple[int, ...]:
    """Where what is clipped is smallest at the start, be it gradients of records or changes of clients: what clients
    learn hides a canary least there. Each parameter has its part of them, for noise may be missing from one alone.

    An auditor may choose so: by records alone, before a coin is thrown.

    Args:
        plan: resolved.
        count: how many of the trained values, in the layout's order.
    """
    layout = layout_of_plan(plan)
    squared = torch.zeros(layout.size, dtype=torch.float64)
    for rows in _changes(plan) if plan.privacy.unit == "client" else _gradients(plan):
        lengths = rows.norm(dim=1)
        factors = (plan.privacy.clipping_norm / lengths).clamp(max=1.0).double()
        finite = lengths.isfinite()  # what isn't counts as zeros (rule 5)
        for row, factor in zip(rows[finite], factors[finite], strict=True):
            squared += (row * factor).square()
    ends = np.cumsum([0, *(prod(shape) for _, shape in layout.entries)])
    parts = np.diff(np.round(ends * count / layout.size).astype(int))  # in proportion; `count` in all
    found = list[int]()
    for start, end, part in zip(ends[:-1], ends[1:], parts, strict=True):
        found += (int(start) + torch.argsort(squared[start:end], stable=True)[:part]).tolist()
    return tuple(found)


def _gradients(plan: Plan) -> Iterator[Tensor]:
    """Gradients of a few records of a few clients, (records, values) each."""
    model = build_for(plan).train()
    for client, own in _some_clients(plan):
        with seeded(derive_seed(plan.seed, "quiet", client), torch.device("cpu")):
            for _, rows in gradients_of(plan, model, own.part(slice(_LOOKED_AT))):
                yield rows


def _changes(plan: Plan) -> Iterator[Tensor]:
    """What a round's training changes at a few clients, (1, values) each: of a network that need not have a gradient
    of each record."""
    model, layout = build_for(plan), layout_of_plan(plan)
    start = get_parameters(model)
    for client, own in _some_clients(plan):
        try:
            change, _ = train_plain(model, start, own, plan, round_number=1, client=client)
        except (RuntimeError, ValueError):
            continue  # it will fail in the run too, which leaves it out
        yield torch.from_numpy(flat(change, layout))[None]


def _some_clients(plan: Plan) -> Iterator[tuple[str, Records]]:
    clients = _own_records(plan)
    return ((client, clients[client]) for client in islice(clients, _LOOKED_AT) if len(clients[client]))


def records_of(plan: Plan, planting: Planting) -> CanaryRecords:
    """The records that a planting of records has picked, of all clients."""
    own = _own_records(plan)
    found = [(client, *canary_records(own[client], planting, client)) for client in planting.clients]
    return CanaryRecords(
        records=Records(
            x=torch.cat([records.x for _, records, _ in found]), y=torch.cat([records.y for _, records, _ in found])
        ),
        owners=np.array([client for client, records, _ in found for _ in range(len(records))]),
        coins=np.concatenate([coins for _, _, coins in found]),
    )


def _own_records(plan: Plan) -> Mapping[str, Records]:
    """What each client trains on."""
    key = split_key(plan)
    if plan.holds_out:
        return {client: train for client, (train, _) in seen_parts(plan, split_key=key).items()}
    return seen_records(plan, split_key=key)
