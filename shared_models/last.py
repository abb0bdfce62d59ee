"""What was computed last, for whoever asks again about the same thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

_Found = TypeVar("_Found")


class Last(Generic[_Found]):
    """Remembers one answer. A simulation asks the same of one client after another, in the same words.

    What it is about is compared by value, so an answer is never another one's; the same objects are compared at once.
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[object, ...], _Found] | None = None

    def of(self, about: tuple[object, ...], compute: Callable[[], _Found]) -> _Found:
        """The answer for `about`: the one before, if it was about the same, else a new one. It is shared: not to be
        changed."""
        known = self._known
        if known is None or known[0] != about:
            known = self._known = about, compute()
        return known[1]
