"""Figures of frozen objects that are asked for again and again, and computed once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

_Of = TypeVar("_Of")
_Figure = TypeVar("_Figure")


def once(method: Callable[[_Of], _Figure]) -> Callable[[_Of], _Figure]:
    """A method without arguments that is run once for each object.

    For frozen objects that can't carry the figure themselves: Pydantic's copies take everything along, and a copy with
    another value in it would keep the old figure.
    """
    found: dict[int, tuple[weakref.ref[Any], _Figure]] = {}

    @wraps(method)
    def known(of: _Of) -> _Figure:
        key = id(of)
        entry = found.get(key)
        if entry is not None and entry[0]() is of:
            return entry[1]
        figure = method(of)
        found[key] = weakref.ref(of, lambda _: found.pop(key, None)), figure
        return figure

    return known
