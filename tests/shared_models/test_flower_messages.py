"""Flower's messages as bytes: in two parts, with a head that can be read alone; and what an app remembers."""

from __future__ import annotations

import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage

from shared_models.flower_messages import (
    act_as_server,
    header_from_bytes,
    header_to_bytes,
    mark_received,
    message_from_bytes,
    payload_to_bytes,
    state_from_bytes,
    state_to_bytes,
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
