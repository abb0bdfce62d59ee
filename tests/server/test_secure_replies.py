"""Replies of a secure sum: a field too many, another type or length, and it is a named fault and nothing else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from server.replies import ClientFault, Head
from server.secure_replies import Masked, Words, read_masked, read_words
from shared_models.faults import Fault
from shared_models.protocol import ARRAYS, CONFIG, EPSILON, LEDGER, MASKED, METRICS, SECURE_MESSAGE, WEIGHT
from tests.server.conftest import error, head, head_record, request

VECTOR = np.arange(5, dtype=np.uint32)


def vector_reply(**changes: Any) -> Message:
    """A good reply, with some records replaced (None: left out)."""
    records: dict[str, Any] = {
        ARRAYS: ArrayRecord({MASKED: Array(VECTOR)}),
        METRICS: MetricRecord({WEIGHT: 1, EPSILON: 0.5}),
        LEDGER: head_record(head(1)),
        **changes,
    }
    return Message(
        RecordDict({name: record for name, record in records.items() if record is not None}), reply_to=request()
    )


def masked(reply: Message, *, length: int = 5, type_name: str = "uint32") -> Masked | ClientFault:
    return read_masked(reply, "site", length=length, type_name=type_name)


def words(record: Any, **more: Any) -> Words | ClientFault:
    return read_words(Message(RecordDict({CONFIG: record, **more}), reply_to=request()), "site")


def test_a_good_vector_is_read_with_what_is_said_of_the_books() -> None:
    found = masked(vector_reply())
    assert isinstance(found, Masked)
    assert found.vector.dtype == np.uint32
    assert found.vector.tolist() == [0, 1, 2, 3, 4]
    assert (found.client, found.epsilon, found.head) == ("site", 0.5, head(1))
    assert found.received == len(Array(VECTOR).data)
    assert "vector" not in repr(found)


def test_the_vector_can_not_be_written_to() -> None:
    """It is in the message's own bytes: no copy of each client's vector is made."""
    found = masked(vector_reply())
    assert isinstance(found, Masked)
    assert not found.vector.flags.writeable


def test_the_wide_ring_is_read_as_such() -> None:
    reply = vector_reply(arrays=ArrayRecord({MASKED: Array(VECTOR.astype(np.uint64))}))
    assert isinstance(masked(reply, type_name="uint64"), Masked)
    assert masked(reply) == ClientFault("site", Fault.MODEL_MISMATCH)


@pytest.mark.parametrize(
    "arrays",
    [
        ArrayRecord({}),
        ArrayRecord({"layer": Array(VECTOR)}),
        ArrayRecord({MASKED: Array(VECTOR), "more": Array(VECTOR)}),
        ArrayRecord({MASKED: Array(VECTOR[:4])}),
        ArrayRecord({MASKED: Array(VECTOR.reshape(1, 5))}),
        ArrayRecord({MASKED: Array(VECTOR.astype(np.int32))}),
        ArrayRecord({MASKED: Array(VECTOR.astype(np.float32))}),
        ArrayRecord({MASKED: Array(dtype="uint32", shape=(5,), stype="numpy.ndarray", data=b"\x93NUMPY\x01\x00")}),
    ],
    ids=["none", "another name", "two", "short", "two axes", "signed", "floats", "damaged"],
)
def test_another_vector_is_a_mismatch(arrays: ArrayRecord) -> None:
    assert masked(vector_reply(arrays=arrays)) == ClientFault("site", Fault.MODEL_MISMATCH)


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": None},
        {"ledger": None},
        {"arrays": None},
        {"more": ConfigRecord({})},
        {"arrays": ConfigRecord({})},
        {"metrics": MetricRecord({WEIGHT: 1})},
        {"metrics": MetricRecord({WEIGHT: 2, EPSILON: 0.5})},
        {"metrics": MetricRecord({WEIGHT: 1.0, EPSILON: 0.5})},
        {"metrics": MetricRecord({WEIGHT: 1, EPSILON: 0.5, "train-loss": 0.1})},
        {"metrics": MetricRecord({WEIGHT: 1, EPSILON: 0.5, "examples": 12})},
        {"metrics": MetricRecord({WEIGHT: 1, EPSILON: -0.5})},
        {"metrics": MetricRecord({WEIGHT: 1, EPSILON: math.nan})},
        {"metrics": MetricRecord({WEIGHT: 1, EPSILON: math.inf})},
        {"ledger": head_record(Head(-1, "0" * 64))},
    ],
)
def test_rule_1_a_field_more_less_or_other_is_malformed(changes: dict[str, Any]) -> None:
    assert masked(vector_reply(**changes)) == ClientFault("site", Fault.MALFORMED_REPLY)


def test_words_are_bytes_and_nothing_beside_them() -> None:
    found = words(ConfigRecord({SECURE_MESSAGE: b"abc"}))
    assert found == Words("site", b"abc")
    assert isinstance(found, Words)
    assert found.received == 3
    assert "abc" not in repr(found)
    bad = ClientFault("site", Fault.MALFORMED_REPLY)
    assert words(ConfigRecord({SECURE_MESSAGE: "abc"})) == bad
    assert words(ConfigRecord({SECURE_MESSAGE: [b"abc"]})) == bad
    assert words(ConfigRecord({})) == bad
    assert words(ConfigRecord({SECURE_MESSAGE: b"abc", "mean-age": 54.0})) == bad
    assert words(ConfigRecord({SECURE_MESSAGE: b"abc"}), more=ConfigRecord({})) == bad
    assert words(MetricRecord({SECURE_MESSAGE: 1})) == bad
    assert words(ConfigRecord({SECURE_MESSAGE: bytes((1 << 24) + 1)})) == bad


@pytest.mark.parametrize("code", [Fault.SECURE_SUM_REFUSED, Fault.BUDGET_EXHAUSTED, Fault.CLIENT_FAILED])
def test_an_error_is_what_its_code_says(code: Fault) -> None:
    expected = ClientFault("site", code, refused=code.is_refusal)
    assert read_words(error(request(), code), "site") == expected
    assert masked(error(request(), code)) == expected


def test_what_the_server_finds_no_client_says_of_itself() -> None:
    assert read_words(error(request(), Fault.SECURE_SUM_ABORTED), "site") == ClientFault("site", Fault.CLIENT_FAILED)
