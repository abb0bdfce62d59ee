"""The one place that knows how Flower's messages are made and marked.

A grid of one's own has to play the part of Flower's SuperLink: say who is sending, give each message an id, and
carry a node's state. The names used here are Flower's internals, gathered so that there is one place to mend.
"""

from __future__ import annotations

import base64
import copy
import json
import time
from collections.abc import Iterator, Mapping
from itertools import count

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, recorddict_from_proto, recorddict_to_proto
from flwr.common.serde_utils import error_to_proto, metadata_from_proto, metadata_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.task_identity import TaskIdentity
from google.protobuf.message import DecodeError

from shared_models.faults import Fault

_ids = count(1)
_A_WEEK = 7 * 86400.0
_LARGE = 1 << 16  # bytes

# What Flower's own reading makes of hostile bytes, beside ValueError: a value that is of no type is an AttributeError.
_UNREADABLE = (DecodeError, TypeError, KeyError, AttributeError, OverflowError)


def act_as_server(run_id: int) -> None:
    """Let this process make messages: Flower asks who it is."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    TaskIdentity.task_id = 1


def give_id(message: Message, message_id: str | None = None) -> str:
    """Mark a message that is about to be sent with an id: a new one, unless it is given."""
    message_id = message_id or f"{next(_ids):016x}"
    message.metadata.__dict__["_message_id"] = message_id
    return message_id


def rebuild(metadata: Metadata, content: RecordDict) -> Message:
    """A message of one's own from what travelled; the content is copied, since several clients may share it.

    The arrays' bytes are immutable and are not copied.
    """
    return make_message(metadata=copy.copy(metadata), content=copied(content))


def copied(content: RecordDict) -> RecordDict:
    """A copy that may be changed in any way; the arrays' bytes are shared. As `copy.deepcopy`, much quicker."""
    found: RecordDict = content.copy()
    records = found.__dict__["_data"]  # not item by item: each would be checked
    for name, record in content.items():
        own = records[name] = record.copy()
        values = own.__dict__["_data"]
        for key, value in record.items():
            if isinstance(value, Array):
                values[key] = make_array(value.__dict__)
            elif isinstance(value, list):
                values[key] = list(value)
    return found


def make_array(fields: Mapping[str, object]) -> Array:
    """An array of Flower's, of fields that are known to be right: `dtype`, `shape`, `stype`, `data`."""
    found = Array.__new__(Array)
    found.__dict__.update(fields)
    return found


def to_buffers(message: Message) -> None:
    """Make a message's large arrays buffers, which pickle's fifth protocol needn't copy. `from_buffers` undoes it."""
    for array in _arrays_of(message):
        if len(array.data) >= _LARGE:
            array.__dict__["data"] = np.frombuffer(array.data, np.uint8)


def from_buffers(message: Message) -> None:
    """Make buffers bytes again."""
    for array in _arrays_of(message):
        if not isinstance(array.data, bytes):
            array.__dict__["data"] = array.data.tobytes()


def _arrays_of(message: Message) -> Iterator[Array]:
    if message.has_content():
        for record in message.content.array_records.values():
            yield from record.values()


def error_reply(metadata: Metadata, fault: Fault) -> Message:
    """The reply of a client that can't speak for itself."""
    return Message(Error(code=int(fault), reason=""), reply_to=make_message(metadata=metadata, content=RecordDict()))


def client_context(*, run_id: int, node_id: int, client: str, config: Mapping[str, str], state: RecordDict) -> Context:
    """What a ClientApp is told about where it runs."""
    return Context(
        run_id=run_id,
        node_id=node_id,
        node_config={"client-id": client},
        state=state,
        run_config=dict(config),
    )


def states_to_bytes(states: Mapping[str, RecordDict]) -> bytes:
    """Clients' states for a checkpoint."""
    plain = {
        client: base64.b64encode(recorddict_to_proto(state).SerializeToString(deterministic=True)).decode()
        for client, state in states.items()
    }
    return json.dumps(plain, sort_keys=True).encode()


def states_from_bytes(data: bytes) -> dict[str, RecordDict]:
    """Clients' states out of a checkpoint.

    Raises:
        ValueError: the bytes hold something else.
    """
    return {
        client: recorddict_from_proto(ProtoRecordDict.FromString(base64.b64decode(text)))
        for client, text in json.loads(data).items()
    }


def state_to_bytes(state: RecordDict) -> bytes:
    """What an app remembers, for the disk; empty for nothing."""
    encoded: bytes = recorddict_to_proto(state).SerializeToString(deterministic=True)
    return encoded


def state_from_bytes(data: bytes) -> RecordDict:
    """What an app remembers, from the disk.

    Raises:
        ValueError: the bytes hold something else.
    """
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except _UNREADABLE:
        raise ValueError("not an app's state") from None


def header_to_bytes(metadata: Metadata) -> bytes:
    """A message's head on a link: whom it is from and for.

    Head and payload, one after the other, are Flower's own encoding of the whole message.
    """
    encoded: bytes = ProtoMessage(metadata=metadata_to_proto(metadata)).SerializeToString(deterministic=True)
    return encoded


def header_from_bytes(header: bytes) -> Metadata:
    """A message's head from a link, before its payload is there.

    Raises:
        ValueError: the bytes are no head of a message of Flower's.
    """
    try:
        found = ProtoMessage.FromString(header)
        if not found.HasField("metadata"):
            raise ValueError("not a message of Flower's")
        return metadata_from_proto(found.metadata)
    except _UNREADABLE:
        raise ValueError("not a message of Flower's") from None


def mark_received(metadata: Metadata) -> None:
    """Let a message that came over a link live on from now by this machine's clock: the sender's may be wrong."""
    metadata.created_at = time.time()
    metadata.ttl = _A_WEEK


def timeless(metadata: Metadata) -> Metadata:
    """A reply's metadata without times: of when it was made its receiver believes nothing, and should know nothing."""
    found = copy.copy(metadata)
    found.created_at, found.ttl = 0.0, 0.0
    return found


def payload_to_bytes(message: Message) -> bytes:
    """The rest of a message on a link: content or error, the same for all receivers of one content."""
    encoded: bytes = payload_to_proto(message).SerializeToString(deterministic=True)
    return encoded


def payload_to_proto(message: Message) -> ProtoMessage:
    """What `payload_to_bytes` writes."""
    content = recorddict_to_proto(message.content) if message.has_content() else None
    error = error_to_proto(message.error) if message.has_error() else None
    return ProtoMessage(content=content, error=error)


def reply_from_bytes(asked: Metadata, payload: bytes | bytearray) -> Message:
    """A reply from a link: what it holds is its sender's word; whom it is from and what it answers is ours.

    Args:
        asked: of the message that it answers.
        payload: as `payload_to_bytes` wrote it.

    Raises:
        ValueError: the bytes are no message's payload.
    """
    metadata = Metadata(
        run_id=asked.run_id,
        message_id="",
        src_node_id=asked.dst_node_id,
        dst_node_id=asked.src_node_id,
        reply_to_message_id=asked.message_id,
        group_id=asked.group_id,
        created_at=time.time(),
        ttl=_A_WEEK,
        message_type=asked.message_type,
    )
    return message_from_bytes(header_to_bytes(metadata), payload)


def message_from_bytes(header: bytes, payload: bytes | bytearray) -> Message:
    """A message from a link.

    Args:
        header: its head.
        payload: the rest. A `bytearray` is emptied on the way: a large message is in memory twice then, not thrice.

    Raises:
        ValueError: the bytes are no message of Flower's, hold neither content nor error, or both, or two things of one
            name.
    """
    try:
        metadata = ProtoMessage.FromString(header)
        body = ProtoMessage.FromString(payload)  # type: ignore[arg-type]  # it takes any buffer
        if isinstance(payload, bytearray):
            payload.clear()
        if not metadata.HasField("metadata") or body.HasField("metadata"):
            raise ValueError("not a message of Flower's")
        if body.HasField("content") == body.HasField("error"):
            raise ValueError("a message holds content, or an error")
        _check_names(body.content)
        body.metadata.CopyFrom(metadata.metadata)
        return message_from_proto(body)
    except _UNREADABLE:
        raise ValueError("not a message of Flower's") from None


def _check_names(content: ProtoRecordDict) -> None:
    """Each name stands once: Flower would take the last of them, and print the name, which is a stranger's text."""
    records = (getattr(item, item.WhichOneof("value") or "", None) for item in content.items)
    for named in (content, *(record for record in records if record is not None)):
        names = [item.key for item in named.items]
        if len(set(names)) < len(names):
            raise ValueError("a message holds two things of one name")
