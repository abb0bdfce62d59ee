"""An auditor's canaries, as the auditor knows them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.features import seen_parts, seen_records
from client.datasets.records import Records
from client.planting import Kind, Planting, canary_records
from client.workplace import split_key
from shared_models.cards import card_for
from shared_models.parameters import Layout
from shared_models.plan import Plan
from shared_models.plan_personal import shared_layout
from shared_models.registry import build_for


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
        size=layout_of_plan(plan).size,
        clipping_norm=plan.privacy.clipping_norm,
        classes=len(card_for(plan.data).classes),
    )


def records_of(plan: Plan, planting: Planting) -> CanaryRecords:
    """The records that a planting of records has picked, of all clients."""
    key = split_key(plan)
    if plan.holds_out:
        own = {client: train for client, (train, _) in seen_parts(plan, split_key=key).items()}
    else:
        own = dict(seen_records(plan, split_key=key))
    found = [(client, *canary_records(own[client], planting, client)) for client in planting.clients]
    return CanaryRecords(
        records=Records(
            x=torch.cat([records.x for _, records, _ in found]), y=torch.cat([records.y for _, records, _ in found])
        ),
        owners=np.array([client for client, records, _ in found for _ in range(len(records))]),
        coins=np.concatenate([coins for _, _, coins in found]),
    )
