"""JSON files that others wrote: exactly the expected keys, each of its type, or a `ValueError` that says what isn't."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def canonical(value: object) -> bytes:
    """The one text of a value: sorted keys, no spaces, ASCII. What is digested and signed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def pretty(value: object) -> bytes:
    """For people to read."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode()


def parse_record(data: bytes, kind: str, **types: type) -> dict[str, Any]:
    """The record that a file holds. Its first key is `kind`, which says what kind of thing it is.

    Raises:
        ValueError: it is another thing, or malformed. The text never holds what was sent.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_pairs, parse_constant=_constant)
    except (ValueError, RecursionError):
        raise ValueError("is not JSON") from None
    if not isinstance(value, dict) or value.get("kind") != kind:
        raise ValueError(f"is not a {kind.rpartition(' ')[0]}")
    if value.keys() != {"kind", *types}:
        raise ValueError(f"must have the keys {', '.join(sorted(('kind', *types)))} and no others")
    for key, expected in types.items():
        if type(value[key]) is not expected:
            raise ValueError(f"{key} is of the wrong type")
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands there twice")
    return data


def _constant(_: str) -> NoReturn:
    raise ValueError("not a number of JSON")
