"""Replies whose length tells which fields they hold, and nothing of what the fields say.

On the wire a whole number takes one byte to ten, by its size: who sees nothing but the lengths of encrypted messages
would learn how many digits a count of records has. So a payload is filled up to the length that it would have if
each of its whole numbers were as long as can be. Everything else that Veil sends has a length of its own: floats,
arrays, signatures. What fills up is a field that no reader knows, which protobuf has readers skip.
"""

from __future__ import annotations

from typing import Any, Final

from flwr.app import Message

from shared_models.flower_messages import payload_to_proto

_FIELD: Final = 1000
_LEAST: Final = 128  # bytes: from here on the length of the filling itself takes two bytes
_LONGEST: Final = {"sint64": -(1 << 63), "uint64": (1 << 64) - 1}


def even_payload(message: Message) -> bytes:
    """The payload of a reply (`flower_messages.payload_to_bytes`), filled up.

    Its length follows from the names and kinds of its fields, the lengths of texts and bytes, and the arrays' shapes.
    """
    found = payload_to_proto(message)
    payload: bytes = found.SerializeToString(deterministic=True)
    if not message.has_content():
        return payload  # an error: one number, and those of all faults are equally long
    for item in found.content.items:
        for record in (item.metric_record, item.config_record):
            for field in record.items:
                _lengthen(field.value)
    filling = bytes(_LEAST + found.ByteSize() - len(payload))
    del found
    return b"".join((payload, _varint(_FIELD << 3 | 2), _varint(len(filling)), filling))


def _lengthen(value: Any) -> None:
    kind = value.WhichOneof("value")
    if kind in _LONGEST:
        setattr(value, kind, _LONGEST[kind])


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
