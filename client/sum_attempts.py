"""The attempts at secure sums that a client has a part in.

Their secrets are never written to a site's disk. A site that ends has lost them, and is one of those who dropped out:
the secrets of the next attempt are new ones. Of each run the newest attempt alone is kept, and of few runs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from security.secure_sum.attempt import Phase

if TYPE_CHECKING:
    from security.secure_sum.client import SumClient

_MOST_RUNS: Final = 4

Resume = Callable[[str, bytes], "SumClient"]
"""Makes a client of the digest of its model and what `SumClient.to_bytes` gave."""


@dataclass(kw_only=True)
class Pending:
    """An attempt at one client.

    Attributes:
        client: its secrets, and whose turn it is.
        model: digest of the model that the attempt is about.
        answered: digest of the request that was answered with a masked vector; empty before.
    """

    client: SumClient = field(repr=False)
    model: str
    answered: str = ""

    @property
    def is_over(self) -> bool:
        """Whether nothing more is said in it: it ended, or was aborted here."""
        return self.client.phase in (Phase.OVER, Phase.ABORTED)


class Attempts(Protocol):
    """Where a client's attempts are kept between two messages."""

    def newest(self, run: str) -> int:
        """Number of the newest attempt of a run that was begun; 0 if none is known."""

    def find(self, run: str, attempt: bytes, resume: Resume) -> Pending | None:
        """An attempt that is under way; None if it is unknown, over, or an older one.

        Args:
            run: the server's own id of the run.
            attempt: digest.
            resume: how a client is made of bytes, where it was kept as such.
        """

    def keep(self, pending: Pending) -> None:
        """Keep an attempt as it is now, in the place of the run's last one; of one that is over the number alone."""

    def drop(self, pending: Pending) -> None:
        """The attempt is over for this client, whatever its phase: forget its secrets."""


class SumAttempts:
    """A site's attempts, in memory alone. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[int, Pending | None]] = {}  # oldest first

    def newest(self, run: str) -> int:
        with self._lock:
            return self._runs.get(run, (0, None))[0]

    def find(self, run: str, attempt: bytes, resume: Resume) -> Pending | None:
        with self._lock:
            _, pending = self._runs.get(run, (0, None))
            return None if pending is None or pending.client.attempt.digest != attempt else pending

    def keep(self, pending: Pending) -> None:
        self._put(pending, None if pending.is_over else pending)

    def drop(self, pending: Pending) -> None:
        self._put(pending, None)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._runs.clear()

    def _put(self, pending: Pending, kept: Pending | None) -> None:
        run, number = pending.client.attempt.run, pending.client.attempt.number
        with self._lock:
            newest, there = self._runs.get(run, (0, None))
            if number < newest:
                return  # a newer one has begun meanwhile
            if number == newest and there is None and not pending.answered:
                return  # it was dropped meanwhile: only what it has sent brings it back
            self._runs.pop(run, None)
            self._runs[run] = number, kept
            for old in list(self._runs)[:-_MOST_RUNS]:
                del self._runs[old]
