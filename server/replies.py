"""Checking one reply: an update that can be trusted to have the right form, or a named fault."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from shared_models.cards import card_for
from shared_models.faults import Fault, fault_of
from shared_models.parameters import DamagedError, Layout, LayoutError, Parameters, all_finite, read_array, wire_bytes
from shared_models.plan import Plan
from shared_models.plan_central import gives_joint
from shared_models.protocol import (
    ARRAYS,
    CONFUSION,
    CORRECT,
    EPSILON,
    EXAMPLES,
    HEAD_HASH,
    HEAD_POSITION,
    JOINT,
    LEDGER,
    METRICS,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
)
from shared_models.wire import decode_update

# What only the server finds; a client that says so has failed.
_FOUND_HERE = (
    Fault.MALFORMED_REPLY,
    Fault.NON_FINITE,
    Fault.TIMED_OUT,
    Fault.SECURE_SUM_BROKEN,
    Fault.SECURE_SUM_ABORTED,
)

_LARGEST_WEIGHT = 2**29  # what the mean can hold
_LARGEST_LOSS = 1e100  # so that the mean of a round's losses is finite
_LARGEST_COUNT = 2**40
_HASH = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Head:
    """The newest entry of a client's ledger that the server was told of.

    Attributes:
        position: from 0.
        hash: SHA-256, in hexadecimal.
    """

    position: int
    hash: str


@dataclass(frozen=True)
class Update:
    """One client's contribution to a round.

    Attributes:
        client: stable client id.
        delta: change of the parameters, float32, by name; where the clipping norm adapts and a server adds the noise,
            one vector with the bit in it.
        weight: whole number its mean is weighted by.
        epsilon: what the client says it has spent in this run; None without privacy.
        train_loss: mean training loss; None where it is not told or makes no sense (NaN, infinity, above 1e100).
        examples: number of its records, where its site lets that out unprotected; else None.
        received: bytes of its arrays on the wire.
        head: newest entry of its ledger that it tells of.
        unprotected: whether it holds fields that the site let out as they are, which withdraws its claim.
    """

    client: str
    delta: Parameters
    weight: int
    epsilon: float | None
    train_loss: float | None
    received: int
    head: Head
    examples: int | None = None
    unprotected: bool = False


@dataclass(frozen=True)
class CountsReply:
    """One client's evaluation.

    Attributes:
        client: stable client id.
        correct, total: numbers of right and of all held-out examples; under privacy with noise, so perhaps negative.
        epsilon: what the client says it has spent in this run; None without privacy.
        head: newest entry of its ledger that it tells of.
        table: int64 (classes, classes), by true class and guess, where the plan counts by class; both numbers are then
            its sums.
    """

    client: str
    correct: int
    total: int
    epsilon: float | None
    head: Head
    table: npt.NDArray[np.int64] | None = None


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

    Under privacy it may hold the update, a weight of 1, an epsilon, and what plan and policy let out unprotected
    (rule 1); nothing else.
    """
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    private = plan.is_private
    content = reply.content if reply.has_content() else RecordDict()
    arrays, metrics, head = content.get(ARRAYS), content.get(METRICS), head_of(content)
    if set(content.keys()) != {ARRAYS, METRICS, LEDGER} or not isinstance(arrays, ArrayRecord) or head is None:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    needed = {WEIGHT, EPSILON if private else TRAIN_LOSS}
    optional = set(plan.privacy.unprotected) if private else set()
    if not isinstance(metrics, MetricRecord) or not needed <= set(metrics.keys()) <= needed | optional:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    weight, figure = metrics[WEIGHT], metrics[EPSILON if private else TRAIN_LOSS]
    largest = 1 if plan.weighting == "uniform" else _LARGEST_WEIGHT
    if not _is_count(weight) or not 1 <= weight <= largest:  # type: ignore[operator]  # it is a count
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if not isinstance(figure, float) or (private and not 0 <= figure < math.inf):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    loss, examples = metrics.get(TRAIN_LOSS), metrics.get(EXAMPLES)
    if not isinstance(loss, float | None) or not _is_size(examples):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    try:
        delta = _joint(arrays, layout) if gives_joint(plan) else decode_update(arrays, layout)
    except DamagedError:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    except LayoutError:
        return ClientFault(client, Fault.MODEL_MISMATCH)
    if not all_finite(delta):
        return ClientFault(client, Fault.NON_FINITE)
    return Update(
        client=client,
        delta=delta,
        weight=weight,  # type: ignore[arg-type]
        epsilon=figure if private else None,
        train_loss=loss if loss is not None and abs(loss) <= _LARGEST_LOSS else None,
        received=wire_bytes(arrays),
        head=head,
        examples=examples,  # type: ignore[arg-type]  # it is a size
        unprotected=bool(set(metrics.keys()) & optional),
    )


def _joint(arrays: ArrayRecord, layout: Layout) -> Parameters:
    """An update and its bit, in one vector."""
    if list(arrays.keys()) != [JOINT]:
        raise LayoutError(f"an update with its bit is one array, {JOINT}")
    return {JOINT: read_array(arrays[JOINT], JOINT, (layout.size + 1,), "float32")}


def read_counts(reply: Message, client: str, plan: Plan) -> CountsReply | ClientFault:
    """Check an evaluate reply field by field: two whole numbers, or a table of them, and under privacy an epsilon."""
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    if plan.evaluation.per_class:
        return _read_table(reply, client, plan)
    private = plan.is_private
    content = reply.content if reply.has_content() else RecordDict()
    metrics, head = content.get(METRICS), head_of(content)
    wanted = {CORRECT, TOTAL, EPSILON} if private else {CORRECT, TOTAL}
    if set(content.keys()) != {METRICS, LEDGER} or head is None or not isinstance(metrics, MetricRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if set(metrics.keys()) != wanted:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    correct, total, epsilon = metrics[CORRECT], metrics[TOTAL], metrics.get(EPSILON)
    possible = _is_count(correct) and _is_count(total) and max(abs(correct), abs(total)) <= _LARGEST_COUNT  # type: ignore[arg-type]
    if not possible or (not private and not 0 <= correct <= total):  # type: ignore[operator]
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if private and not (isinstance(epsilon, float) and 0 <= epsilon < math.inf):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    return CountsReply(client, correct, total, epsilon if private else None, head)  # type: ignore[arg-type]


def _read_table(reply: Message, client: str, plan: Plan) -> CountsReply | ClientFault:
    malformed = ClientFault(client, Fault.MALFORMED_REPLY)
    content = reply.content if reply.has_content() else RecordDict()
    arrays, metrics, head = content.get(ARRAYS), content.get(METRICS), head_of(content)
    records = {ARRAYS, METRICS, LEDGER} if plan.is_private else {ARRAYS, LEDGER}
    if set(content.keys()) != records or head is None or not isinstance(arrays, ArrayRecord):
        return malformed
    if list(arrays.keys()) != [CONFUSION]:
        return malformed
    epsilon: float | None = None
    if plan.is_private:
        if not isinstance(metrics, MetricRecord) or set(metrics.keys()) != {EPSILON}:
            return malformed
        told = metrics[EPSILON]
        if not (isinstance(told, float) and 0 <= told < math.inf):
            return malformed
        epsilon = told
    classes = len(card_for(plan.data).classes)
    try:
        table = read_array(arrays[CONFUSION], CONFUSION, (classes, classes), "int64")
    except LayoutError:
        return malformed
    # Not by the absolute value: that of the least number is itself.
    if (table > _LARGEST_COUNT).any() or (table < (-_LARGEST_COUNT if plan.is_private else 0)).any():
        return malformed
    return CountsReply(client, int(np.trace(table)), int(table.sum()), epsilon, head, table)


def said(client: str, fault: Fault) -> ClientFault:
    """What a client says of itself; what only a server can find, it can't say."""
    if fault in _FOUND_HERE:
        fault = Fault.CLIENT_FAILED
    return ClientFault(client, fault, refused=fault.is_refusal)


def head_of(content: RecordDict) -> Head | None:
    """The ledger's newest entry, as a reply tells it; None if it is told wrongly."""
    record = content.get(LEDGER)
    if not isinstance(record, ConfigRecord) or set(record.keys()) != {HEAD_POSITION, HEAD_HASH}:
        return None
    position, digest = record[HEAD_POSITION], record[HEAD_HASH]
    if not _is_count(position) or not 0 <= position < 2**53:  # type: ignore[operator]
        return None
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        return None
    return Head(position, digest)  # type: ignore[arg-type]


def _is_size(value: object) -> bool:
    return value is None or (_is_count(value) and 0 <= value <= _LARGEST_COUNT)  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
