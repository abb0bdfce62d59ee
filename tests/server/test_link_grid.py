"""Over the link a round is played as on any grid; a server that was killed goes on with the replies that are there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata

from security.frames import PENDING, Begin, Goodbye, Offer, Receipt, Taken
from server import link_grid
from server.link_grid import GridStopped, LinkGrid
from server.replies import ClientFault
from server.roster import GridWithClients
from server.streams import StreamingGrid, answers
from shared_models.faults import Fault
from shared_models.flower_messages import header_to_bytes, message_from_bytes, payload_to_bytes
from tests.server.conftest import FakeGrid, Player, StreamingFakeGrid, learns, make_plan, same_bits
from tests.server.link_client import SECONDS, Site, begin
from tests.server.link_world import RUN, World

SITES = ("east", "north", "south", "west")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Starts a link over a mailbox that a later one may take over."""
    made: list[World] = []

    def make(name: str = "mailbox", **settings: Any) -> World:
        for world in made:
            world.close()
        made.append(World(tmp_path / f"{name}.sqlite", SITES, **settings).start())
        made[-1].offer()
        return made[-1]

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make: Callable[..., World]) -> World:
    return make()


def grid_of(world: World, members: Sequence[str] = SITES, *, deadline: float = SECONDS) -> LinkGrid:
    return LinkGrid(world.link, world.mailbox, run=RUN, members=members, deadline=deadline)


def content(text: str = "model") -> RecordDict:
    return RecordDict({"config": ConfigRecord({"text": text})})


def said(message: Message) -> str:
    return str(message.content.config_records["config"]["text"])


def ask(grid: LinkGrid, shared: RecordDict | None = None, *, kind: str = "train", group: str = "1") -> list[Message]:
    """The same for every member."""
    shared = content() if shared is None else shared
    return [Message(shared, node, kind, group_id=group) for node in grid.client_nodes.values()]


def read(head: Begin, payload: bytes) -> Message:
    return message_from_bytes(head.header, payload)


def echo(head: Begin, payload: bytes) -> bytes:
    """A site that says its number and what it was told."""
    message = read(head, payload)
    return payload_to_bytes(Message(content(f"{message.metadata.dst_node_id}: {said(message)}"), reply_to=message))


def never(_: Begin, __: bytes) -> None:
    """A site that never answers."""


def by_site(grid: LinkGrid, replies: Sequence[Message]) -> dict[str, Message]:
    names = {node: site for site, node in grid.client_nodes.items()}
    return {names[reply.metadata.src_node_id]: reply for reply in replies}


# --- a round


def test_every_member_answers(world: World) -> None:
    for site in SITES:
        world.site(site, echo)
    grid = grid_of(world)
    assert isinstance(grid, StreamingGrid)
    assert isinstance(grid, GridWithClients)
    assert sorted(grid.client_nodes) == sorted(SITES)
    assert list(grid.get_node_ids()) == list(grid.client_nodes.values())
    for group in ("1", "2"):
        asked = ask(grid, group=group)
        replies = list(grid.stream(asked))
        sent = {message.metadata.dst_node_id: message.metadata for message in asked}
        assert len(replies) == 4
        for reply in replies:
            own = sent[reply.metadata.src_node_id]
            assert said(reply) == f"{own.dst_node_id}: model"
            assert reply.metadata.reply_to_message_id == own.message_id
            assert (reply.metadata.dst_node_id, reply.metadata.run_id) == (own.src_node_id, grid.run_id)
            assert (reply.metadata.group_id, reply.metadata.message_type) == (group, "train")


def test_replies_come_as_they_arrive(world: World) -> None:
    gates = {site: threading.Event() for site in SITES}

    def gated(site: str) -> Callable[[Begin, bytes], bytes]:
        def work(head: Begin, payload: bytes) -> bytes:
            assert gates[site].wait(SECONDS)
            return echo(head, payload)

        return work

    for site in SITES:
        world.site(site, gated(site))
    grid = grid_of(world)
    stream = grid.stream(ask(grid))
    for site in ("south", "west", "east", "north"):
        gates[site].set()
        assert list(by_site(grid, [next(stream)])) == [site]
    assert list(stream) == []


def test_a_payload_is_serialised_once_for_all(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def counted(message: Message) -> bytes:
        nonlocal count
        count += 1
        return payload_to_bytes(message)

    monkeypatch.setattr(link_grid, "payload_to_bytes", counted)
    for site in SITES:
        world.site(site, echo)
    grid = grid_of(world)
    assert len(list(grid.stream(ask(grid)))) == 4
    assert count == 1
    own = [
        Message(content(site), node, "train", group_id="2") for site, node in grid.client_nodes.items()
    ]  # as in secure sums
    replies = by_site(grid, list(grid.stream(own)))
    assert {site: said(reply).split()[1] for site, reply in replies.items()} == {site: site for site in SITES}
    assert count == 5


def test_what_a_reply_says_of_its_sender_is_not_believed(world: World) -> None:
    """A site that answers in another's name, and for another round, is heard as itself."""
    grid = grid_of(world, ("north", "south"))
    client = world.member("north")
    stream = grid.stream(ask(grid), timeout=SECONDS)
    head, payload = client.receive_message()
    request = read(head, payload)
    forged = Metadata(
        run_id=7,
        message_id="x",
        src_node_id=grid.client_nodes["south"],
        dst_node_id=9,
        reply_to_message_id="y",
        group_id="99",
        created_at=0.0,
        ttl=1.0,
        message_type="evaluate",
    )
    update = payload_to_bytes(Message(content("update"), reply_to=request))
    client.send_message(head.id, update, header=header_to_bytes(forged))
    (reply,) = by_site(grid, [next(stream)]).items()
    assert reply[0] == "north"
    assert reply[1].metadata.group_id == "1"
    assert reply[1].metadata.message_type == "train"


@pytest.mark.parametrize("payload", [b"", b"no message", b"\xff" * 100])
def test_a_reply_that_is_no_message_is_a_fault(world: World, payload: bytes) -> None:
    world.site("north", lambda *_: payload)
    grid = grid_of(world, ("north",))
    (reply,) = grid.stream(ask(grid))
    assert reply.has_error()
    assert reply.error.code == Fault.MALFORMED_REPLY


def test_a_task_that_is_too_large_for_a_site_is_a_fault(world: World) -> None:
    world.member("north", largest=1)
    world.site("south", echo)
    grid = grid_of(world, ("north", "south"))
    replies = by_site(grid, list(grid.stream(ask(grid))))
    assert replies["north"].error.code == Fault.UNREACHABLE
    assert replies["south"].has_content()


def test_flowers_own_way_of_asking(world: World) -> None:
    world.site("north", echo)
    grid = grid_of(world, ("north",))
    assert grid.run.run_id == grid.run_id
    grid.set_run(grid.run)
    (node,) = grid.get_node_ids()
    message = grid.create_message(content(), "train", node, "1")
    (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id, "unknown"])
    assert said(reply) == f"{node}: model"
    assert list(grid.pull_messages([message_id])) == []
    assert len(list(grid.send_and_receive(messages=ask(grid, group="2"), timeout=SECONDS))) == 1


def test_only_members_are_asked_and_only_for_a_run_on_offer(world: World) -> None:
    grid = grid_of(world, ("north",))
    with pytest.raises(ValueError, match="none of the members"):
        grid.stream([Message(content(), 99, "train", group_id="1")])
    with pytest.raises(ValueError, match="too long"):
        grid.stream(ask(grid, group="g" * 5000))
    world.link.offer("cd", "plan", "0" * 64)
    with pytest.raises(ValueError, match="not on offer"):
        grid.stream(ask(grid))
    world.link.withdraw()
    with pytest.raises(ValueError, match="not on offer"):
        grid.stream(ask(grid))
    assert world.mailbox.waiting(RUN, "train") == {}


# --- a server that was killed


def test_a_second_server_finds_the_replies_that_arrived(make: Callable[..., World]) -> None:
    first = make()
    for site in ("east", "north"):
        first.site(site, echo)
    slow = first.member("south")
    grid = grid_of(first)
    nodes = dict(grid.client_nodes)
    stream = grid.stream(ask(grid))
    assert set(by_site(grid, [next(stream), next(stream)])) == {"east", "north"}
    head, payload = slow.receive_message()

    second = make()  # the first one's state is what lies on the disk
    grid = grid_of(second)
    assert grid.client_nodes == nodes
    assert second.link.connected() == {}
    begun = time.monotonic()
    stream = grid.stream(ask(grid))
    assert set(by_site(grid, [next(stream), next(stream)])) == {"east", "north"}
    assert time.monotonic() - begun < SECONDS
    back = second.inside("south", holding=(head.id,))  # it was at work, and its reply is ready now
    back.send_message(head.id, echo(head, payload))
    back.receive(Offer)
    assert back.receive(Receipt).taken is Taken.STORED
    assert set(by_site(grid, [next(stream)])) == {"south"}
    second.site("west", echo)
    assert set(by_site(grid, [next(stream)])) == {"west"}
    assert list(stream) == []


def test_replies_that_arrive_before_the_question_comes_again_are_used(make: Callable[..., World]) -> None:
    first = make()
    site = first.member("north")
    grid_of(first, ("north",)).stream(ask(grid_of(first, ("north",))))
    head, payload = site.receive_message()
    second = make()
    grid = grid_of(second, ("north",))
    back = second.inside("north", holding=(head.id,))
    back.send_message(head.id, echo(head, payload))
    back.receive(Offer)
    assert back.receive(Receipt).taken is Taken.STORED
    back.close()
    (reply,) = grid.stream(ask(grid))
    assert said(reply).endswith("model")


def test_other_words_are_another_question(make: Callable[..., World]) -> None:
    """A model that came out otherwise is asked anew; the old question is called off."""
    world = make()
    site = world.member("north")
    grid = grid_of(world, ("north",))
    grid.stream(ask(grid))
    old, _ = site.receive_message()
    stream = grid.stream(ask(grid, content("another model")))
    assert world.mailbox.waiting(RUN, "train").keys() != {old.id}
    frames = [site.next_frame() for _ in range(3)]
    assert {type(frame).__name__ for frame in frames} == {"Recall", "Begin", "Chunk"}
    new = next(frame for frame in frames if isinstance(frame, Begin))
    site.send_message(old.id, b"")
    assert site.receive(Receipt).taken is Taken.UNASKED
    site.send_message(new.id, payload_to_bytes(Message(content("new"), reply_to=ask(grid)[0])))
    assert said(next(stream)) == "new"


def test_the_same_question_in_another_run_or_round_is_another(world: World) -> None:
    world.site("north", echo)
    ids = set()
    for group, kind in (("1", "train"), ("2", "train"), ("2", "evaluate")):
        grid = grid_of(world, ("north",))
        asked = ask(grid, group=group, kind=kind)
        list(grid.stream(asked))
        ids |= {message.metadata.message_id for message in asked}
    world.link.offer("cd", "plan", "0" * 64)
    grid = LinkGrid(world.link, world.mailbox, run="cd", members=("north",), deadline=SECONDS)
    asked = ask(grid)
    list(grid.stream(asked))
    ids |= {message.metadata.message_id for message in asked}
    assert len(ids) == 4


def test_a_query_is_asked_anew_each_time(make: Callable[..., World]) -> None:
    world, count = make(), 0

    def counting(head: Begin, payload: bytes) -> bytes:
        nonlocal count
        count += 1
        return payload_to_bytes(Message(content(str(count)), reply_to=read(head, payload)))

    world.site("north", counting)
    grid = grid_of(world, ("north",))
    ids = set()
    for turn in ("1", "2", "3"):
        asked = ask(grid, kind="query.statement", group="statement")
        (reply,) = grid.stream(asked)
        assert said(reply) == turn
        ids |= {message.metadata.message_id for message in asked}
    assert len(ids) == 3  # a site that still holds the answer to one is not asked for it
    assert world.mailbox.kinds(RUN) == []  # nothing is kept of them


def test_queries_of_a_killed_server_are_called_off(make: Callable[..., World]) -> None:
    first = make()
    grid = grid_of(first, ("north",))
    grid.stream(ask(grid, kind="query.statement"))
    grid.stream(ask(grid))
    assert first.mailbox.kinds(RUN) == ["query.statement", "train"]
    second = make()
    grid_of(second, ("north",))
    assert second.mailbox.kinds(RUN) == ["train"]
    assert second.member("north").receive_message()[0].id in second.mailbox.waiting(RUN, "train")


def test_the_two_newest_groups_of_each_kind_are_kept(world: World) -> None:
    for site in SITES:
        world.site(site, echo)
    grid = grid_of(world)
    for number in range(1, 5):
        for kind in ("train", "evaluate"):
            list(grid.stream(ask(grid, content(str(number)), kind=kind, group=str(number))))
    rows = world.mailbox._file.rows('SELECT kind, "group", count(*) FROM tasks GROUP BY kind, "group" ORDER BY 1, 2')
    assert rows == [("evaluate", "3", 4), ("evaluate", "4", 4), ("train", "3", 4), ("train", "4", 4)]
    assert world.mailbox._file.rows("SELECT count(*) FROM payloads WHERE kind = 2") == [(16,)]


# --- who doesn't answer


def test_after_the_deadline_nothing_is_taken(world: World) -> None:
    world.site("north", echo)
    late: Site = world.site("south", never)
    grid = grid_of(world, ("north", "south"))
    world.until(lambda: len(world.link.answers()) == 2)
    replies = list(grid.stream(ask(grid), timeout=0.5))
    assert list(by_site(grid, replies)) == ["north"]
    world.until(lambda: late.recalled == late.tasks != [])
    late.client.send(begin(late.tasks[0], b""))
    world.until(lambda: late.receipts == {late.tasks[0]: "UNASKED"})
    assert world.mailbox.settled(late.tasks)[0].fault == 0


def test_the_grids_own_deadline_counts_where_a_message_has_none(world: World) -> None:
    world.member("north")
    grid = grid_of(world, ("north",), deadline=0.2)
    begun = time.monotonic()
    assert list(grid.stream(ask(grid))) == []
    assert 0.2 <= time.monotonic() - begun < SECONDS


def test_who_was_in_time_is_heard_though_nobody_listened(world: World) -> None:
    """The consumer is busy until after the deadline; both replies had arrived before it."""
    sites = [world.site(site, echo) for site in ("north", "south")]
    grid = grid_of(world, ("north", "south"))
    world.until(lambda: len(world.link.answers()) == 2)
    stream = grid.stream(ask(grid), timeout=0.5)
    first = next(stream)
    world.until(lambda: all("STORED" in site.receipts.values() for site in sites))
    deadline = time.monotonic() + 0.5
    world.until(lambda: time.monotonic() > deadline)
    assert set(by_site(grid, [first, *stream])) == {"north", "south"}


def test_a_client_that_said_nothing_timed_out(world: World) -> None:
    world.site("north", echo)
    grid = grid_of(world, ("north", "south"))
    clients = {node: site for site, node in grid.client_nodes.items()}
    found = list(answers(grid, ask(grid), clients, lambda _, client: client, timeout=0.3))
    assert found == ["north", ClientFault("south", Fault.TIMED_OUT)]


@pytest.mark.parametrize("is_connected", [True, False])
@pytest.mark.parametrize("way", ["revoked", "off the roster", "refuses the plan"])
def test_a_member_that_must_go_is_not_waited_for(world: World, way: str, is_connected: bool) -> None:
    world.site("north", echo)
    grid = grid_of(world, ("north", "south"), deadline=1000.0)
    stream = grid.stream(ask(grid))
    assert list(by_site(grid, [next(stream)])) == ["north"]
    client = world.inside("south")
    client.accept(int(Fault.POLICY_PLAN) if way == "refuses the plan" else PENDING)
    if not is_connected:
        world.until(lambda: "south" in world.link.answers())
        client.close()
    if way == "revoked":
        world.revoked.add("south")
        world.link.close_site("south", Goodbye.REVOKED)
    elif way == "off the roster":
        del world.sites["south"]
    (reply,) = stream
    assert reply.error.code == Fault.UNREACHABLE
    assert list(by_site(grid, [reply])) == ["south"]
    assert world.mailbox.waiting(RUN, "train") == {}


def test_stopping_wakes_who_waits_and_leaves_the_question_open(world: World) -> None:
    world.site("north", echo)
    grid = grid_of(world, ("north", "south"), deadline=1000.0)
    stream = grid.stream(ask(grid))
    next(stream)
    stopper = threading.Timer(0.05, grid.stop)
    stopper.start()
    with pytest.raises(GridStopped):
        next(stream)
    stopper.join()
    assert list(world.mailbox.waiting(RUN, "train").values()) == ["south"]
    with pytest.raises(GridStopped):
        grid.stream(ask(grid))
    (reply, *_) = grid_of(world, ("north", "south"), deadline=0.1).stream(ask(grid))
    assert said(reply).endswith("model")


def test_who_stops_listening_calls_off_queries_alone(world: World) -> None:
    world.site("north", echo)
    grid = grid_of(world, ("north", "south"))
    for kind in ("train", "query.statement"):
        stream = grid.stream(ask(grid, kind=kind))
        next(stream)
        assert list(world.mailbox.waiting(RUN, kind).values()) == ["south"]
        stream.close()  # type: ignore[attr-defined]
    assert list(world.mailbox.waiting(RUN, "train").values()) == ["south"]
    assert world.mailbox.kinds(RUN) == ["train"]


# --- a whole run


def test_a_run_over_the_link_is_the_run_on_any_grid(world: World, play: Player) -> None:
    """The same model, bit for bit, as on a grid in memory."""
    plan = make_plan({"federation": {"rounds": 3, "wire": "float16"}})

    def honest(site: str) -> Callable[[Begin, bytes], bytes]:
        def work(head: Begin, payload: bytes) -> bytes:
            (reply,) = learns(site, read(head, payload))
            return payload_to_bytes(reply)

        return work

    for site in SITES:
        world.site(site, honest(site))
    here: FakeGrid = StreamingFakeGrid(SITES, learns)
    there: Any = grid_of(world)
    expected, found = play(plan, here), play(plan, there)
    assert found.outcome.stopped is None
    assert found.outcome.state.round == 3
    assert same_bits(found.outcome.parameters, expected.outcome.parameters)
    assert not np.array_equal(found.outcome.parameters["layer.bias"], np.zeros(2))
