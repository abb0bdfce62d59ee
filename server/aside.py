"""Telling what happens on the link without waiting for who is told.

A terminal that nobody reads, or a log on a slow disk, would otherwise hold up the link's own thread, and with it every
site.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from security.frames import Goodbye, Taken
from server.link_observer import LinkObserver

_MOST: Final = 10_000  # words that wait; what comes beyond is not told
_CLOSE_SECONDS: Final = 5.0

_Word = Callable[[], None]


class Aside:
    """An observer that passes everything on, in order, from a thread of its own.

    Args:
        observer: who is told.

    Attributes:
        untold: words that there was no room for, because `observer` waited for too long.
    """

    def __init__(self, observer: LinkObserver) -> None:
        self.untold = 0
        self._observer = observer
        self._words: queue.Queue[_Word | None] = queue.Queue(_MOST)
        self._thread = threading.Thread(target=self._tell, name="veil-link-observer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what is left, for a few seconds at most."""
        try:
            self._words.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    def connected(self, site: str, software: str) -> None:
        self._put(partial(self._observer.connected, site, software))

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        self._put(partial(self._observer.disconnected, site, why, seconds))

    def refused(self, site: str | None, why: Goodbye) -> None:
        self._put(partial(self._observer.refused, site, why))

    def answered(self, site: str, code: int) -> None:
        self._put(partial(self._observer.answered, site, code))

    def task_sent(self, site: str, task: str, size: int) -> None:
        self._put(partial(self._observer.task_sent, site, task, size))

    def reply_stored(self, site: str, task: str, size: int) -> None:
        self._put(partial(self._observer.reply_stored, site, task, size))

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        self._put(partial(self._observer.reply_refused, site, task, taken))

    def failed(self, site: str | None, where: str) -> None:
        self._put(partial(self._observer.failed, site, where))

    def _put(self, word: _Word) -> None:
        try:
            self._words.put_nowait(word)
        except queue.Full:
            self.untold += 1

    def _tell(self) -> None:
        while (word := self._words.get()) is not None:
            word()
