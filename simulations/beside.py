"""Work that is done while this thread does other things."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

_Found = TypeVar("_Found")


def beside(compute: Callable[[], _Found]) -> Future[_Found]:
    """Begin to compute in a thread of its own, which holds nobody up: a process that has to end doesn't wait for it."""
    found: Future[_Found] = Future()

    def work() -> None:
        try:
            found.set_result(compute())
        except BaseException as error:
            found.set_exception(error)

    Thread(target=work, daemon=True).start()
    return found
