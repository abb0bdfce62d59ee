"""Replies as a stream, on any grid.

Veil's own grids hand over each reply as it arrives; Flower's grids collect a phase and return it whole, which is a
stream that comes all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid


@runtime_checkable
class StreamingGrid(Protocol):
    """A grid that yields replies as they arrive."""

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies in the order of arrival.

        Ends when every message has its reply, or after `timeout` seconds with those that came.
        """
        ...


def stream_replies(grid: Grid, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
    """Send messages and yield their replies, as early as the grid can."""
    if not messages:
        return
    if isinstance(grid, StreamingGrid):
        yield from grid.stream(messages, timeout=timeout)
    else:
        yield from grid.send_and_receive(messages, timeout=timeout)
