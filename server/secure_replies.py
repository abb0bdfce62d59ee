"""Checking the replies of a secure sum: bytes of its protocol, or one masked vector; anything else is a named fault."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from server.replies import ClientFault, Head, head_of, said
from shared_models.faults import Fault, fault_of
from shared_models.parameters import LayoutError, read_array, wire_bytes
from shared_models.protocol import ARRAYS, CONFIG, EPSILON, LEDGER, MASKED, METRICS, SECURE_MESSAGE, WEIGHT

_LONGEST_MESSAGE = 1 << 24  # bytes: a thousand times what the protocol sends to cohorts of hundreds


@dataclass(frozen=True)
class Words:
    """What a client says in one of the short phases.

    Attributes:
        client: stable client id.
        message: bytes that the protocol itself reads and checks.
    """

    client: str
    message: bytes = field(repr=False)

    @property
    def received(self) -> int:
        """Bytes of it on the wire."""
        return len(self.message)


@dataclass(frozen=True)
class Masked:
    """A client's masked vector, and what its reply says of its books.

    Attributes:
        client: stable client id.
        vector: one number a coordinate, in the ring's own type; in the message's own bytes, not to be written to.
        epsilon: what the client says it has spent in this run.
        head: newest entry of its ledger that it tells of.
        received: bytes of the vector on the wire.
    """

    client: str
    vector: npt.NDArray[Any] = field(repr=False)
    epsilon: float
    head: Head
    received: int


def read_words(reply: Message, client: str) -> Words | ClientFault:
    """Check the reply of a short phase: one field of bytes."""
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    content = reply.content if reply.has_content() else RecordDict()
    config = content.get(CONFIG)
    if set(content.keys()) != {CONFIG} or not isinstance(config, ConfigRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    message = config.get(SECURE_MESSAGE)
    if set(config.keys()) != {SECURE_MESSAGE} or not isinstance(message, bytes) or len(message) > _LONGEST_MESSAGE:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    return Words(client, message)


def read_masked(reply: Message, client: str, *, length: int, type_name: str) -> Masked | ClientFault:
    """Check the reply of the masked phase: one vector of the ring's type, a weight of 1, an epsilon, and the head.

    Args:
        reply: to a train message of a secure sum.
        client: whose it is.
        length: of the vector.
        type_name: of its numbers, "uint32" or "uint64".
    """
    if reply.has_error():
        return said(client, fault_of(reply.error.code))
    content = reply.content if reply.has_content() else RecordDict()
    arrays, metrics, head = content.get(ARRAYS), content.get(METRICS), head_of(content)
    if set(content.keys()) != {ARRAYS, METRICS, LEDGER} or head is None or not isinstance(metrics, MetricRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if set(metrics.keys()) != {WEIGHT, EPSILON} or not isinstance(arrays, ArrayRecord):
        return ClientFault(client, Fault.MALFORMED_REPLY)
    weight, epsilon = metrics[WEIGHT], metrics[EPSILON]
    if type(weight) is not int or weight != 1 or not isinstance(epsilon, float) or not 0 <= epsilon < math.inf:
        return ClientFault(client, Fault.MALFORMED_REPLY)
    if list(arrays.keys()) != [MASKED]:
        return ClientFault(client, Fault.MODEL_MISMATCH)
    try:
        vector = read_array(arrays[MASKED], MASKED, (length,), type_name)
    except LayoutError:
        return ClientFault(client, Fault.MODEL_MISMATCH)
    return Masked(client, vector, epsilon, head, wire_bytes(arrays))
