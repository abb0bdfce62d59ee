"""A digest of all that a message holds: names, numbers and arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from flwr.app import Array, RecordDict


def content_parts(content: RecordDict) -> Sequence[bytes]:
    """What is digested, in order; the arrays' bytes are not copied."""
    parts: list[bytes] = []
    for name, record in content.items():
        parts.append(repr((name, type(record).__name__, len(record))).encode())
        for key, value in record.items():
            data = value.data if isinstance(value, Array) else repr(value).encode()
            parts += repr((key, len(data))).encode(), data
    return parts


def digest_of_parts(parts: Iterable[bytes]) -> str:
    """SHA-256 of the parts, in hexadecimal. Each that may be of any length has its length before it."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
