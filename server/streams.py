"""Replies as a stream, on any grid, and what each asked client said.

Veil's own grids hand over each reply as it arrives; Flower's grids collect a phase and return it whole, which is a
stream that comes all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from server.replies import ClientFault
from shared_models.faults import Fault

Answer = TypeVar("Answer")


@runtime_checkable
class StreamingGrid(Protocol):
    """A grid that yields replies as they arrive."""

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies in the order of arrival.

        Ends when every message has its reply, or after `timeout` seconds with those that came.
        """
        ...


def answers(
    grid: Grid,
    messages: Sequence[Message],
    clients: Mapping[int, str],
    read: Callable[[Message, str], Answer],
    *,
    timeout: float | None,
) -> Iterator[Answer | ClientFault]:
    """What each asked client said, in the order of arrival: each client once, and in answer to these messages alone.

    Nothing of a reply is held here while the next one is on its way, so a server need not have room for two.

    Args:
        grid: how clients are reached.
        messages: one a client, all of one group.
        clients: id of each node.
        read: makes something of a reply and its client's id.
        timeout: seconds after which a client that said nothing is late; None waits.
    """
    if not messages:
        return
    missing = {message.metadata.dst_node_id for message in messages}
    group = messages[0].metadata.group_id
    for reply in _replies(grid, messages, timeout):
        node, found = reply.metadata.src_node_id, None
        if node in missing and reply.metadata.group_id == group:
            missing.remove(node)
            found = read(reply, clients[node])
        del reply
        if found is not None:
            yield found
        del found
    for node in sorted(missing):
        yield ClientFault(clients[node], Fault.TIMED_OUT)


def _replies(grid: Grid, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
    """Send messages and yield their replies, as early as the grid can."""
    if isinstance(grid, StreamingGrid):
        yield from grid.stream(messages, timeout=timeout)
    else:
        yield from grid.send_and_receive(messages, timeout=timeout)
