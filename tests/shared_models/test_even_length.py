"""Lengths of replies that tell fields, and not what they say."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared_models.even_length import even_payload
from shared_models.faults import Fault
from shared_models.flower_messages import act_as_server, header_to_bytes, message_from_bytes, payload_to_bytes

WHOLE = st.integers(-(1 << 63), (1 << 63) - 1)


def reply(number: int, other: int, loss: float, value: float) -> Message:
    act_as_server(1)
    return Message(
        RecordDict(
            {
                "arrays": ArrayRecord({"a": Array(np.full(300, value, np.float32))}),
                "metrics": MetricRecord({"num-examples": number, "train-loss": loss}),
                "ledger": ConfigRecord({"position": other, "hash": "0" * 64}),
            }
        ),
        7,
        "train",
    )


@given(WHOLE, WHOLE, st.floats(), st.floats(width=32))
def test_no_value_shows_in_the_length(number: int, other: int, loss: float, value: float) -> None:
    assert len(even_payload(reply(number, other, loss, value))) == len(even_payload(reply(0, 0, 0.0, 0.0)))


@given(WHOLE, WHOLE)
def test_what_is_read_is_what_was_said(number: int, other: int) -> None:
    sent = reply(number, other, 0.5, 1.5)
    found = message_from_bytes(header_to_bytes(sent.metadata), even_payload(sent))
    assert found.content == sent.content


def test_without_it_digits_show() -> None:
    assert len(payload_to_bytes(reply(1000, 1, 0.5, 1.5))) > len(payload_to_bytes(reply(1, 1, 0.5, 1.5)))


def test_another_field_more_may_show() -> None:
    """Which fields there are is the guard's business, and the same for everybody."""
    more = reply(1, 1, 0.5, 1.5)
    more.content.metric_records["metrics"]["more"] = 1
    assert len(even_payload(more)) > len(even_payload(reply(1, 1, 0.5, 1.5)))


def test_a_fault_is_as_long_as_any_other() -> None:
    asked = reply(1, 1, 0.5, 1.5)
    faults = [Message(Error(code=int(fault), reason=""), reply_to=asked) for fault in Fault]
    assert len({len(even_payload(fault)) for fault in faults}) == 1
