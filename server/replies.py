"""Checking one reply: an update that can be trusted to have the right form, or a named fault."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from shared_models.faults import Fault, fault_of
from shared_models.parameters import Layout, LayoutError, Parameters, from_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, EPSILON, METRICS, TRAIN_LOSS, WEIGHT

# What a client may say that it won't do; it says so before it touches data, and is not charged (rule 5).
_REFUSALS = (Fault.BUDGET_EXHAUSTED, Fault.PLAN_MISMATCH, Fault.MODEL_MISMATCH)

# What only the server finds; a client that says so has failed.
_FOUND_HERE = (Fault.MALFORMED_REPLY, Fault.NON_FINITE, Fault.TIMED_OUT)

_LARGEST_WEIGHT = 2**29  # what the mean can hold
_LARGEST_LOSS = 1e100  # so that the mean of a round's losses is finite


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round.

    Attributes:
        client: stable client id.
        delta: change of the parameters, float32, by name.
        weight: whole number its mean is weighted by.
        epsilon: what the client says it has spent in this run; None without privacy.
        train_loss: mean training loss; None under privacy, or where it makes no sense (NaN, infinity, above 1e100).
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
    """A client that is missing from a round, and why.

    Attributes:
        client: stable client id.
        fault: what went wrong.
        refused: whether the client itself said that it won't, before it touched data.
    """

    client: str
    fault: Fault
    refused: bool = False


def read_reply(reply: Message, client: str, layout: Layout, plan: Plan) -> Update | ClientFault:
    """Check a train reply field by field.

    Under privacy it may hold the update, a weight of 1 and an epsilon, and nothing else (rule 1).
    """
    if reply.has_error():
        return _said(client, fault_of(reply.error.code))
    if not reply.has_content():
        return ClientFault(client, Fault.MALFORMED_REPLY)
    private, content = plan.is_private, reply.content
    arrays, metrics = content.get(ARRAYS), content.get(METRICS)
    if set(content.keys()) != {ARRAYS, METRICS} or not isinstance(arrays, ArrayRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if not isinstance(metrics, MetricRecord) or set(metrics.keys()) != {
        WEIGHT,
        EPSILON if private else TRAIN_LOSS,
    }:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    weight, figure = metrics[WEIGHT], metrics[EPSILON if private else TRAIN_LOSS]
    largest = 1 if plan.weighting == "uniform" else _LARGEST_WEIGHT
    if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= largest:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if not isinstance(figure, float) or (private and not 0 <= figure < math.inf):
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
        train_loss=figure if not private and abs(figure) <= _LARGEST_LOSS else None,
        received=wire_bytes(arrays),
    )


def _said(client: str, fault: Fault) -> ClientFault:
    if fault in _FOUND_HERE:
        fault = Fault.CLIENT_FAILED
    return ClientFault(client, fault, refused=fault in _REFUSALS)
