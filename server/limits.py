"""How much the link takes from a site, and for how long it waits for one: all bounds in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of the link. A site that behaves never meets them.

    Attributes:
        largest_message: bytes of a reply.
        most_sites: connected at once; one more is `BUSY`.
        streams_of_site: of one site that are not over, those that are about to end included; one more is `BUSY`.
        hello_seconds: until a new stream must have said who it is.
        hello_gap_seconds: between two streams of one site; who comes sooner is `BUSY`.
        frames_per_second, frames_burst: of one site; who sends more is read more slowly.
        receipts: that wait for a site to read them; then nothing more is read from it.
        stall_seconds: that a site may take to read one frame.
        farewell_seconds: that a site has to hear why its stream ends.
    """

    largest_message: int = 1 << 30
    most_sites: int = 1024
    streams_of_site: int = 8
    hello_seconds: float = 10.0
    hello_gap_seconds: float = 0.5
    frames_per_second: float = 2000.0
    frames_burst: float = 4000.0
    receipts: int = 64
    stall_seconds: float = 300.0
    farewell_seconds: float = 2.0


class TokenBucket:
    """Lets through so many a second, and so many at once after a rest.

    Args:
        rate: a second.
        burst: at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._since: float | None = None

    def take(self, now: float) -> float:
        """Take one. Returns how many seconds to wait before it may be used.

        Args:
            now: seconds on any clock that never goes back.
        """
        passed = 0.0 if self._since is None else max(0.0, now - self._since)
        self._since = now
        self._tokens = min(self._burst, self._tokens + passed * self._rate) - 1.0
        return max(0.0, -self._tokens / self._rate)
