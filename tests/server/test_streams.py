"""Replies come as a stream, whatever the grid, and each asked client is heard once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

from flwr.app import Message

from server.replies import ClientFault
from server.streams import StreamingGrid, answers
from shared_models.faults import Fault
from tests.server.conftest import FakeGrid, StreamingFakeGrid, error, learns, request

CLIENTS = {1: "a", 2: "b", 3: "c"}


def heard(reply: Message, client: str) -> str:
    return f"{client} as node {reply.metadata.src_node_id}"


def echo(client: str, message: Message) -> list[Message]:
    return [error(message, Fault.CLIENT_FAILED)]


class Lazy(StreamingFakeGrid):
    """Writes down what was delivered when."""

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        for message in messages:
            yield from self.replies([message], timeout)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("a grid that streams is asked to stream")


def test_a_streaming_grid_hands_over_each_reply_as_it_arrives() -> None:
    grid = Lazy("abc", echo)
    stream = answers(grid, [request(1), request(2)], CLIENTS, heard, timeout=5.0)
    assert grid.timeouts == []
    assert next(stream) == "a as node 1"
    assert grid.timeouts == [5.0]
    assert next(stream) == "b as node 2"
    assert grid.timeouts == [5.0, 5.0]
    assert list(stream) == []


def test_a_reply_is_let_go_before_the_next_one_is_asked_for() -> None:
    """Those that are read, and those that are passed over."""
    alive: list[weakref.ref[Message]] = []
    held: list[int] = []

    class OneByOne(StreamingFakeGrid):
        def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
            for message in messages:
                for _ in range(2):
                    gc.collect()
                    held.append(sum(reference() is not None for reference in alive))
                    (reply,) = self.replies([message], timeout)
                    alive.append(weakref.ref(reply))
                    yield reply
                    del reply

    stream = answers(OneByOne("abc", echo), [request(1), request(2)], CLIENTS, lambda reply, _: reply, timeout=None)
    nodes = []
    for reply in stream:
        assert isinstance(reply, Message)
        nodes.append(reply.metadata.src_node_id)
        del reply
    assert nodes == [1, 2]
    assert held == [0] * 4


def test_any_other_grid_hands_over_all_at_once() -> None:
    grid = FakeGrid("abc", echo)
    assert not isinstance(grid, StreamingGrid)
    messages = [request(3), request(1)]
    assert list(answers(grid, messages, CLIENTS, heard, timeout=None)) == ["c as node 3", "a as node 1"]
    assert grid.timeouts == [None]


def test_nothing_to_send_asks_no_grid() -> None:
    grid = FakeGrid("abc", learns)
    assert list(answers(grid, [], CLIENTS, heard, timeout=1.0)) == []
    assert grid.timeouts == []


def test_who_said_nothing_is_late_and_who_was_not_asked_is_not_heard() -> None:
    """Nor is a second answer, nor one to another question."""

    def talkative(client: str, message: Message) -> list[Message]:
        good = error(message, Fault.CLIENT_FAILED)
        stranger = error(request(node=9, group="1"), Fault.CLIENT_FAILED)
        not_asked = error(request(node=3, group="1"), Fault.CLIENT_FAILED)
        old = error(request(node=message.metadata.dst_node_id, group="1 evaluate"), Fault.CLIENT_FAILED)
        return [stranger, not_asked, old, good, good] if client == "a" else [old]

    for grid in (FakeGrid("abc", talkative), StreamingFakeGrid("abc", talkative)):
        found = list(answers(grid, [request(1), request(2)], CLIENTS, heard, timeout=1.0))
        assert found == ["a as node 1", ClientFault("b", Fault.TIMED_OUT)]
