"""One JSON text for one value, so that a hash or a signature of the text is one of the value.

Keys sorted, no spaces, ASCII, shortest decimal form of a float, neither NaN nor infinity (as RFC 8785 does, but for
numbers, which are as Python writes them).
"""

import json
from collections.abc import Mapping
from typing import Any, NoReturn


def canonical(value: object) -> str:
    """The text of a JSON value.

    Raises:
        ValueError: if it is none: NaN or infinity, another type, a key that is not a text.
    """
    try:
        return _ENCODER.encode(_plain(value))
    except (TypeError, RecursionError) as error:
        raise ValueError("not a JSON value") from error


def canonical_again(value: object) -> str:
    """The text of a value that came out of `parse`, or holds nothing but texts and whole numbers: quicker."""
    return _ENCODER.encode(value)


def parse(text: str) -> Any:
    """The value of a JSON text of any layout.

    Raises:
        ValueError: if it is not JSON, names a key twice, or holds NaN, infinity or a number too large.
    """
    try:
        return _DECODER.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_canonical(text: str) -> Any:
    """The value of a canonical text.

    Raises:
        ValueError: if the text is not canonical, though it may mean the same.
    """
    value = parse(text)
    if _ENCODER.encode(value) != text:
        raise ValueError("not in canonical form")
    return value


def record(data: object, what: str, **types: type | tuple[type, ...]) -> dict[str, Any]:
    """A mapping with exactly these keys, each of its type; True is no number, and 1 no float.

    Raises:
        ValueError: if it isn't, naming the key.
    """
    if not isinstance(data, dict) or data.keys() != types.keys():
        given = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"{what} must have the keys {', '.join(sorted(types))}, got {given}")
    for key, expected in types.items():
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if type(data[key]) not in allowed:
            names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"{what}: {key} must be {names}, got {type(data[key]).__name__}")
    return data


def is_digest(value: object) -> bool:
    """Whether it is a SHA-256 in 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")


def _plain(value: object) -> object:
    # What json would turn into something else without a word.
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise ValueError("a key that is not a text")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands there twice")
    return data


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_constant)
