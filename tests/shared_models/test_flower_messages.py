"""Flower's messages as bytes: in two parts, with a head that can be read alone; and what an app remembers."""

from __future__ import annotations

import copy
import pickle
import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage

from shared_models.flower_messages import (
    act_as_server,
    copied,
    from_buffers,
    header_from_bytes,
    header_to_bytes,
    mark_received,
    message_from_bytes,
    payload_to_bytes,
    state_from_bytes,
    state_to_bytes,
    to_buffers,
)


@pytest.fixture
def message() -> Message:
    act_as_server(3)
    return Message(RecordDict({"config": ConfigRecord({"x": b"1234"})}), 7, "train", group_id="2")


def test_a_head_can_be_read_before_its_payload_is_there(message: Message) -> None:
    found = header_from_bytes(header_to_bytes(message.metadata))
    assert (found.run_id, found.dst_node_id, found.message_type, found.group_id) == (3, 7, "train", "2")


@pytest.mark.parametrize("header", [b"", b"\xff", b"\x12\x00", payload_to_bytes])
def test_what_is_no_head_is_refused_without_a_word_of_it(message: Message, header: object) -> None:
    data = header(message) if callable(header) else header
    with pytest.raises(ValueError, match=r"^not a message of Flower's$") as error:
        header_from_bytes(data)
    assert error.value.__cause__ is None


def test_a_payload_is_read_from_any_buffer_and_one_that_can_be_emptied_is(message: Message) -> None:
    header, payload = header_to_bytes(message.metadata), payload_to_bytes(message)
    buffer = bytearray(payload)
    for given in (payload, buffer):
        assert message_from_bytes(header, given).content == message.content
    assert (len(buffer), len(payload) > 0) == (0, True)


def test_a_word_that_is_of_no_type_is_no_message(message: Message) -> None:
    """Flower's own reading fails on it with an error that is none of bytes."""
    body = ProtoMessage.FromString(payload_to_bytes(message))
    body.content.items[0].config_record.items[0].value.Clear()
    with pytest.raises(ValueError, match=r"^not a message of Flower's$"):
        message_from_bytes(header_to_bytes(message.metadata), body.SerializeToString())


@pytest.mark.parametrize("inner", [False, True])
def test_two_things_of_one_name_are_no_message_and_nobody_prints_the_name(
    message: Message, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], inner: bool
) -> None:
    body = ProtoMessage.FromString(payload_to_bytes(message))
    if inner:
        items = body.content.items[0].config_record.items
        items.add().CopyFrom(items[0])
    else:
        body.content.items[0].key = "\x1b[2J a stranger's text"
        body.content.items.add(key=body.content.items[0].key).metric_record.SetInParent()
    with pytest.raises(ValueError, match=r"^a message holds two things of one name$"):
        message_from_bytes(header_to_bytes(message.metadata), body.SerializeToString())
    assert (caplog.text, *capfd.readouterr()) == ("", "", "")


def test_a_message_that_came_lives_by_this_machines_clock(message: Message) -> None:
    message.metadata.created_at, message.metadata.ttl = 1.0, 1.0
    before = time.time()
    mark_received(message.metadata)
    assert before <= message.metadata.created_at <= time.time()
    assert message.metadata.ttl == 7 * 86400
    assert Message(RecordDict(), reply_to=message).metadata.ttl > 86400


def test_what_an_app_remembers_is_kept_and_nothing_is_nothing() -> None:
    state = RecordDict({"memory": ConfigRecord({"seen": 3})})
    assert state_from_bytes(state_to_bytes(state)) == state
    assert state_to_bytes(RecordDict()) == b""
    assert state_from_bytes(b"") == RecordDict()
    with pytest.raises(ValueError, match="not an app's state"):
        state_from_bytes(b"\xff\xff")


def test_large_arrays_travel_as_buffers_that_pickle_does_not_copy() -> None:
    act_as_server(3)
    large, small = np.arange(40_000, dtype=np.float32), np.arange(3, dtype=np.float32)
    message = Message(RecordDict({"a": ArrayRecord({"l": Array(large), "s": Array(small)})}), 1, "train")
    before = {name: array.data for name, array in message.content.array_records["a"].items()}
    to_buffers(message)
    beside: list[pickle.PickleBuffer] = []
    text = pickle.dumps(message, protocol=5, buffer_callback=beside.append)
    assert len(text) < 10_000
    assert len(beside) == 1
    found = pickle.loads(text, buffers=beside)
    from_buffers(found)
    assert {name: array.data for name, array in found.content.array_records["a"].items()} == before
    assert all(type(array.data) is bytes for array in found.content.array_records["a"].values())


def test_a_copy_may_be_changed_in_any_way() -> None:
    content = RecordDict(
        {
            "a": ArrayRecord({"x": Array(np.zeros(2))}),
            "m": MetricRecord({"n": 1, "list": [1, 2]}),
            "c": ConfigRecord({"text": "as it was", "list": ["one"]}),
        }
    )
    before = copy.deepcopy(content)
    other = copied(content)
    assert other == before
    other["m"]["n"] = 2
    other["m"]["list"].append(3)
    other["c"]["list"].append("two")
    other["c"]["more"] = 1
    other["a"]["x"].data = b"other"
    other["a"]["y"] = Array(np.zeros(1))
    del other["c"]["text"]
    other["new"] = ConfigRecord()
    assert content == before
