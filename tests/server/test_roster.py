"""Stable client ids behind the nodes of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from security.errors import RunError
from server import roster as module
from server.roster import roster
from shared_models.faults import Fault
from shared_models.parameters import to_arrays
from shared_models.plan import Plan
from shared_models.protocol import CLIENT_ID, CONFIG, IDENTIFY, PLAN_DIGEST
from tests.server.conftest import LAYOUT, START, FakeGrid, StreamingFakeGrid, error, learns, make_plan


def plan(clients: int, least: int = 1) -> Plan:
    return make_plan({"data": {"partition": {"kind": "iid", "clients": clients}}, "federation": {"min_clients": least}})


class Talkative(FakeGrid):
    """A grid of Flower's kind, whose nodes say of themselves what a test wants."""

    def __init__(self, says: dict[int, Callable[[Message], list[Message]]]) -> None:
        super().__init__([str(node) for node in says], learns)
        self.says = says
        self.asked: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.says)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.asked = list(messages)
        self.timeouts.append(timeout)
        return [reply for message in self.asked for reply in self.says[message.metadata.dst_node_id](message)]


def named(value: object) -> Callable[[Message], list[Message]]:
    return lambda message: [Message(RecordDict({CONFIG: ConfigRecord({CLIENT_ID: value})}), reply_to=message)]


def says(content: RecordDict) -> Callable[[Message], list[Message]]:
    return lambda message: [Message(content, reply_to=message)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only while somebody sleeps."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    return now


def test_a_grid_that_knows_its_clients_is_not_asked() -> None:
    grid = StreamingFakeGrid(["north", "east", "west"], learns)
    assert list(roster(grid, plan(3)).items()) == [("east", 2), ("north", 1), ("west", 3)]
    assert grid.sent == []


def test_too_few_clients_are_refused_whatever_the_grid() -> None:
    with pytest.raises(RunError, match="1 clients joined, the plan needs 2"):
        roster(StreamingFakeGrid(["a"], learns), plan(3, least=2))
    with pytest.raises(RunError, match="0 clients joined, the plan needs 1"):
        roster(StreamingFakeGrid([], learns), plan(3))


def test_flowers_nodes_are_asked_who_they_are_under_the_plans_digest() -> None:
    grid = Talkative({7: named("b"), 3: named("c"), 5: named("a")})
    assert list(roster(grid, plan(3)).items()) == [("a", 5), ("b", 7), ("c", 3)]
    assert {message.metadata.message_type for message in grid.asked} == {IDENTIFY}
    digests = {message.content.config_records[CONFIG][PLAN_DIGEST] for message in grid.asked}
    assert digests == {plan(3).digest()}


def test_nobody_is_waited_for_without_end() -> None:
    grid = Talkative({1: named("a")})
    roster(grid, plan(1))
    assert grid.timeouts == [module._WAIT_SECONDS]


def test_two_nodes_of_one_name_are_refused() -> None:
    grid = Talkative({1: named("a"), 2: named("a")})
    with pytest.raises(RunError, match="two nodes say that they are client 'a'"):
        roster(grid, plan(2))


def test_a_node_that_answers_twice_is_still_one_node() -> None:
    twice = Talkative({1: lambda message: named("a")(message) * 2, 2: named("b")})
    assert roster(twice, plan(2)) == {"a": 1, "b": 2}


def test_a_node_that_was_not_asked_is_not_heard() -> None:
    def in_anothers_name(message: Message) -> list[Message]:
        stranger = Message(RecordDict(), 99, IDENTIFY)
        return named("a")(message) + named("z")(stranger)

    assert roster(Talkative({1: in_anothers_name}), plan(1)) == {"a": 1}


@pytest.mark.parametrize(
    "answer",
    [
        lambda message: [],
        lambda message: [error(message, Fault.PLAN_MISMATCH)],
        says(RecordDict()),
        says(RecordDict({CONFIG: ConfigRecord()})),
        says(RecordDict({CONFIG: MetricRecord({CLIENT_ID: 1})})),
        says(RecordDict({CONFIG: to_arrays(START, LAYOUT)})),
        named(5),
        named(["a", "b"]),
        named(b"raw"),
        named(""),
    ],
    ids=["silence", "error", "empty", "no name", "metrics", "arrays", "number", "list", "bytes", "empty name"],
)
def test_a_node_that_gives_no_name_is_left_out(answer: Callable[[Message], list[Message]]) -> None:
    assert roster(Talkative({1: answer, 2: named("b")}), plan(2)) == {"b": 2}
    with pytest.raises(RunError, match="1 clients joined, the plan needs 2"):
        roster(Talkative({1: answer, 2: named("b")}), plan(2, least=2))


TRAVERSING = ["../a", "a/b", "/etc/passwd", "..", ".hidden", "a\\b", "a\x00b", "a\nb", "ä", "-a", "a" * 101, " a", "a "]


@pytest.mark.parametrize("name", TRAVERSING)
def test_an_id_that_can_not_name_a_file_is_no_id(name: str) -> None:
    """Statements are kept under it: it must not lead out of their folder."""
    assert roster(Talkative({1: named(name), 2: named("b")}), plan(2)) == {"b": 2}
    with pytest.raises(RunError, match=r"^client id .*: can't name a file; give at most 100 letters[^\n]*$"):
        roster(StreamingFakeGrid([name, "b"], learns), plan(2))


@pytest.mark.parametrize("name", ["a", "7", "St.Mary_2-b", "a..b", "a" * 100])
def test_an_id_that_can_name_a_file_is_taken(name: str) -> None:
    assert roster(Talkative({1: named(name)}), plan(1)) == {name: 1}
    assert roster(StreamingFakeGrid([name], learns), plan(1)) == {name: 1}


def test_nodes_that_join_later_are_waited_for(clock: list[float]) -> None:
    class Slow(Talkative):
        def get_node_ids(self) -> Iterable[int]:
            return [node for node in self.says if node <= 1 + clock[0] + 1e-9]

    assert roster(Slow({1: named("a"), 2: named("b"), 3: named("c")}), plan(3)) == {"a": 1, "b": 2, "c": 3}
    assert clock[0] == pytest.approx(2)


def test_the_wait_for_nodes_ends(clock: list[float]) -> None:
    with pytest.raises(RunError, match="1 of 2 clients joined within 300 s"):
        roster(Talkative({1: named("a")}), plan(2))
    assert clock[0] == pytest.approx(300, abs=1)


NATURAL = make_plan(
    {"data": {"partition": {"kind": "natural", "column": "hospital"}}, "federation": {"min_clients": 2}}
)


def joining(times: dict[str, float], clock: list[float]) -> FakeGrid:
    """A grid of Flower's kind whose nodes join at the times given."""

    class Slow(Talkative):
        def get_node_ids(self) -> Iterable[int]:
            return [node for node, time in enumerate(times.values()) if time <= clock[0] + 1e-9]

    return Slow({node: named(name) for node, name in enumerate(times)})


def test_natural_clients_can_not_be_counted_before_so_the_server_waits_until_nobody_joins(clock: list[float]) -> None:
    """Their number is in the data. A site that is a little slow must not be left out without a word."""
    found = roster(joining({"a": 0, "b": 0, "c": 1.8, "d": 3.6}, clock), NATURAL)
    assert list(found) == ["a", "b", "c", "d"]
    assert clock[0] == pytest.approx(3.6 + 2)


def test_whoever_joins_after_that_is_not_of_the_run(clock: list[float]) -> None:
    assert list(roster(joining({"a": 0, "b": 0, "late": 2.4}, clock), NATURAL)) == ["a", "b"]


def test_of_natural_clients_too_the_least_are_waited_for(clock: list[float]) -> None:
    assert list(roster(joining({"a": 0, "b": 100}, clock), NATURAL)) == ["a", "b"]
    clock[0] = 0
    with pytest.raises(RunError, match="1 of 2 clients joined within 300 s"):
        roster(joining({"a": 0, "b": 999}, clock), NATURAL)


def test_nodes_that_join_for_ever_do_not_hold_a_run_up_for_ever(clock: list[float]) -> None:
    found = roster(joining({f"{i:03d}": i for i in range(999)}, clock), NATURAL)
    assert 300 <= len(found) <= 302
