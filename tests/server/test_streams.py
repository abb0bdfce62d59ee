"""Replies come as a stream, whatever the grid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flwr.app import Message

from server.streams import StreamingGrid, stream_replies
from tests.server.conftest import FakeGrid, StreamingFakeGrid, learns, request


class Lazy(StreamingFakeGrid):
    """Writes down what was delivered when."""

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            self.sent.append(message)
            yield from self.replies([message], timeout)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("a grid that streams is asked to stream")


def test_a_streaming_grid_hands_over_each_reply_as_it_arrives() -> None:
    grid = Lazy("abc", lambda client, message: [message])
    stream = stream_replies(grid, [request(1), request(2)], 5.0)
    assert grid.timeouts == []
    next(stream)
    assert grid.timeouts == [5.0]
    next(stream)
    assert grid.timeouts == [5.0, 5.0]
    assert list(stream) == []


def test_any_other_grid_hands_over_all_at_once() -> None:
    grid = FakeGrid("abc", lambda client, message: [message])
    assert not isinstance(grid, StreamingGrid)
    found = list(stream_replies(grid, [request(3), request(1)], None))
    assert [message.metadata.dst_node_id for message in found] == [3, 1]
    assert grid.timeouts == [None]


def test_nothing_to_send_asks_no_grid() -> None:
    grid = FakeGrid("abc", learns)
    assert list(stream_replies(grid, [], 1.0)) == []
    assert grid.timeouts == []
