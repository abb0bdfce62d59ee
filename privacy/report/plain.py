"""Frozen dataclasses as plain JSON values, and back."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def to_plain(value: object) -> Any:
    """Dataclasses become mappings, tuples lists.

    Raises:
        ValueError: a number is not finite: JSON has no such thing.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a figure that can't be claimed must be None")
    return value


def parsed(text: str) -> dict[str, Any]:
    """A JSON object; empty where the text is another JSON value.

    Raises:
        ValueError: it is no JSON; the message goes on from the file's name.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("is damaged") from error
    return raw if isinstance(raw, dict) else {}


def from_plain(kind: type[T], data: Any) -> T:
    """The inverse of `to_plain`, for one dataclass.

    Raises:
        ValueError: `data` does not have its form.
    """
    return typing.cast(T, _read(kind, data, kind.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin is types.UnionType:
        if data is None and type(None) in arguments:
            return None
        return _read(next(option for option in arguments if option is not type(None)), data, where)
    if origin is tuple:
        _expect(isinstance(data, list), where)
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if origin is typing.Literal:
        _expect(data in arguments, where)
        return data
    if origin is Mapping:
        _expect(isinstance(data, Mapping), where)
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in data.items()}
    if kind is Any:
        return data
    if kind is float:
        _expect(type(data) in (int, float), where)
        return float(data)
    _expect(type(data) is kind, where)
    return data


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints = _hints(kind)
    _expect(isinstance(data, Mapping) and data.keys() == hints.keys(), where)
    return kind(**{name: _read(hint, data[name], f"{where}.{name}") for name, hint in hints.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _expect(holds: bool, where: str) -> None:
    if not holds:
        raise ValueError(f"not a report: {where} has another form")
