"""Checking one reply: an update that can be trusted to have the right form, or a named fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from shared_models.faults import Fault, fault_of
from shared_models.parameters import Layout, LayoutError, Parameters, from_arrays, wire_bytes
from shared_models.protocol import ARRAYS, EPSILON, METRICS, TRAIN_LOSS, WEIGHT


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round.

    Attributes:
        client: stable client id.
        delta: change of the parameters, float32, by name.
        weight: whole number its mean is weighted by.
        epsilon: what the client says it has spent in this run; None without privacy.
        train_loss: mean training loss; None under privacy.
        received: bytes of its arrays on the wire.
    """

    client: str
    delta: Parameters
    weight: int
    epsilon: float | None
    train_loss: float | None
    received: int


@dataclass(frozen=True)
class ClientFault:
    """A client that is missing from a round, and why."""

    client: str
    fault: Fault


def read_reply(reply: Message, client: str, layout: Layout, *, private: bool) -> Update | ClientFault:
    """Check a train reply field by field."""
    if reply.has_error():
        return ClientFault(client, fault_of(reply.error.code))
    content = reply.content
    arrays, metrics = content.get(ARRAYS), content.get(METRICS)
    if set(content.keys()) != {ARRAYS, METRICS} or not isinstance(arrays, ArrayRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if not isinstance(metrics, MetricRecord) or set(metrics.keys()) != {
        WEIGHT,
        EPSILON if private else TRAIN_LOSS,
    }:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    weight, figure = metrics[WEIGHT], metrics[EPSILON if private else TRAIN_LOSS]
    if not isinstance(weight, int) or not 1 <= weight <= 2**29 or not isinstance(figure, float):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    try:
        delta = from_arrays(arrays, layout)
    except LayoutError:
        return ClientFault(client, Fault.MODEL_MISMATCH)
    if not all(np.isfinite(value).all() for value in delta.values()):
        return ClientFault(client, Fault.NON_FINITE)
    return Update(
        client=client,
        delta=delta,
        weight=weight,
        epsilon=figure if private else None,
        train_loss=figure if not private and math.isfinite(figure) else None,
        received=wire_bytes(arrays),
    )
