"""The link lets in whom it should, delivers what is asked once and for all, and outlives whatever is said to it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from security.chunks import ZSTD, chunks
from security.errors import RunError
from security.frames import (
    LARGEST_CHUNK,
    LARGEST_FRAME,
    PENDING,
    Answer,
    Beat,
    Begin,
    Chunk,
    Farewell,
    Frame,
    Goodbye,
    Offer,
    Recall,
    Receipt,
    Taken,
    Welcome,
    decode,
    encode,
)
from server.limits import Limits, TokenBucket
from server.mailbox import State
from server.mailbox_file import MailboxError
from shared_models.faults import Fault
from tests.server.link_certificates import TestAuthority
from tests.server.link_client import SECONDS, ClosedError, LinkClient, begin, hello, task_id
from tests.server.link_world import AUTHORITY, DIGEST, PLAN, RUN, World, credentials_of

A, B, C = task_id(1), task_id(2), task_id(3)
BEAT = 0.1  # seconds, where a test waits for some
DAY = 86400.0

Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Starts links; all are stopped at the end."""
    made: list[World] = []

    def make(*args: Any, **settings: Any) -> World:
        made.append(World(tmp_path / f"mailbox-{len(made)}.sqlite", *args, **settings))
        return made[-1].start()

    yield make
    for world in made:
        world.close()


@pytest.fixture
def world(make: Make) -> World:
    return make()


@pytest.fixture
def playing(world: World) -> World:
    """A link with a plan on offer."""
    world.offer()
    return world


def works(world: World, site: str = "south") -> None:
    """Whether a good site is served: it comes in, and its reply is stored."""
    task = hashlib.sha256(os.urandom(8)).hexdigest()
    world.offer()
    world.post(task, site)
    client = world.member(site)
    while (head := client.receive_message())[0].id != task:
        pass
    assert head[1] == b"model"
    client.send_message(task, b"update")
    assert client.receive(Receipt) == Receipt(id=task, taken=Taken.STORED)
    assert world.replied(task) == b"update"
    client.close()


def until_receipt(client: LinkClient) -> Receipt:
    """The next receipt, whatever comes before."""
    while not isinstance(frame := client.next_frame(), Receipt):
        pass
    return frame


# --- who comes in


def test_a_good_hello_is_welcomed(make: Make) -> None:
    world = make(limits=Limits(largest_message=12345), beat_seconds=7.0)
    welcome = world.client().hello("north", compression=("unknown", ZSTD))
    assert (welcome.beat_seconds, welcome.largest, welcome.compression) == (7.0, 12345, ZSTD)
    assert welcome.clock == pytest.approx(time.time(), abs=60.0)
    (connection,) = world.link.connected().values()
    assert (connection.peer.name, connection.software, connection.tasks) == ("north", "0.1.0", 0)
    assert connection.received > 0
    world.until(lambda: world.link.connected()["north"].sent > 0)
    assert world.link.traffic() == (connection.received, world.link.connected()["north"].sent)
    assert world.client("south").hello("south").compression == ""


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (hello("north", protocol=2), Goodbye.PROTOCOL),
        (hello("north", federation="another"), Goodbye.OTHER_FEDERATION),
        (hello("south"), Goodbye.OTHER_SITE),
        (Beat(), Goodbye.MALFORMED),
        (begin(A, b""), Goodbye.MALFORMED),
        (Farewell(why=Goodbye.DONE), Goodbye.MALFORMED),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, Goodbye) else value.name,
)
def test_a_bad_first_word_is_answered_with_why(world: World, said: Frame, expected: Goodbye) -> None:
    client = world.client()
    client.send(said)
    assert client.farewell() is expected
    assert client.until_closed() is grpc.StatusCode.OK
    assert world.link.connected() == {}
    world.diary.wait_for("refused", "north", expected)


def test_the_certificate_decides(world: World) -> None:
    def verdict() -> Goodbye:
        client = world.client()
        client.send(hello("north"))
        return client.farewell()

    world.clock_error = 2 * DAY
    assert verdict() is Goodbye.EXPIRED
    world.clock_error = -2 * DAY
    assert verdict() is Goodbye.EXPIRED
    world.clock_error = 0.0
    world.revoked = {"north"}
    assert verdict() is Goodbye.REVOKED
    world.revoked = set()
    identity = world.sites.pop("north")
    assert verdict() is Goodbye.UNKNOWN_SITE
    world.sites["north"] = world.sites["south"]
    assert verdict() is Goodbye.UNKNOWN_SITE
    world.sites["north"] = identity
    works(world, "north")


def test_without_a_certificate_of_the_authority_nobody_gets_a_word_in(world: World) -> None:
    stranger = LinkClient(world.port, AUTHORITY, TestAuthority().site("north"))
    stranger.send(hello("north"))
    assert stranger.until_closed() is grpc.StatusCode.UNAVAILABLE
    with (
        grpc.secure_channel(
            f"127.0.0.1:{world.port}", grpc.ssl_channel_credentials(AUTHORITY.certificate)
        ) as anonymous,
        pytest.raises(grpc.RpcError) as refused,
    ):
        next(anonymous.stream_stream("/veil.link.Link/Connect")(iter([encode(hello("north"))])))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"127.0.0.1:{world.port}") as plain, pytest.raises(grpc.RpcError) as refused:
        next(plain.stream_stream("/veil.link.Link/Connect")(iter([encode(hello("north"))])))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert world.diary.entries == []
    works(world)


def test_who_says_nothing_is_sent_away(make: Make) -> None:
    world = make(limits=Limits(hello_seconds=0.05))
    assert world.client().farewell() is Goodbye.SILENT


def test_who_calls_too_often_is_sent_away(make: Make) -> None:
    world = make(limits=Limits(hello_gap_seconds=1000.0))
    world.inside()
    again = world.client()
    again.send(hello("north"))
    assert again.farewell() is Goodbye.BUSY
    assert set(world.link.connected()) == {"north"}  # the stream that was there stays
    world.inside("south")


def test_there_is_room_for_so_many_sites(make: Make) -> None:
    world = make(limits=Limits(most_sites=2, hello_gap_seconds=0.0))
    world.inside("north")
    south = world.inside("south")
    east = world.client("east")
    east.send(hello("east"))
    assert east.farewell() is Goodbye.BUSY
    again = world.inside("north")  # its own place it may take again
    south.close()
    world.until(lambda: "south" not in world.link.connected())
    world.inside("east")
    again.send(Beat())


def test_streams_that_one_site_leaves_open_are_counted(make: Make) -> None:
    """Who opens streams, and reads none of the farewells, is served no more; others are."""
    world = make(limits=Limits(streams_of_site=3, hello_seconds=1000.0))
    silent = [world.client("north") for _ in range(3)]
    for client in silent:
        grpc.channel_ready_future(client.channel).result(SECONDS)
    world.until(lambda: world.link._listener.unfinished == 3)
    assert world.client("north").farewell() is Goodbye.BUSY
    works(world, "south")
    silent[0].close()
    world.until(lambda: world.link._listener.unfinished < 3)
    world.inside("north")


def test_a_newer_stream_takes_the_place_of_the_older(playing: World) -> None:
    older = playing.member()
    playing.post(A)
    older.receive_message()
    newer = playing.inside()
    assert older.farewell() is Goodbye.REPLACED
    newer.accept()
    newer.receive_message()
    newer.send_message(A, b"update")
    assert newer.receive(Receipt).taken is Taken.STORED
    assert set(playing.link.connected()) == {"north"}
    playing.diary.wait_for("disconnected", "north", Goodbye.REPLACED)


# --- the offer


def test_a_plan_is_offered_to_who_is_there_and_to_who_comes(world: World) -> None:
    early = world.inside("north")
    world.offer()
    late = world.inside("south")
    for client in (early, late):
        assert client.receive(Offer) == Offer(run=RUN, plan=PLAN, digest=DIGEST)
    early.send(Answer(run=RUN, digest=DIGEST, code=PENDING))
    late.send(Answer(run=RUN, digest=DIGEST, code=int(Fault.POLICY_PLAN)))
    world.until(lambda: world.link.answers() == {"north": PENDING, "south": int(Fault.POLICY_PLAN)})
    early.send(Answer(run=RUN, digest=DIGEST, code=0))
    world.until(lambda: world.link.answers()["north"] == 0)
    late.close()
    world.until(lambda: "south" not in world.link.connected())
    assert world.link.answers()["south"] == int(Fault.POLICY_PLAN)  # it is only away
    assert world.inside("south").receive(Offer).run == RUN


def test_an_answer_said_again_wakes_nobody(playing: World) -> None:
    """Else one site could keep busy whoever waits for all."""
    client = playing.member()
    playing.until(lambda: playing.link.answers() == {"north": 0})
    before = playing.link.departures
    client.send(*[Answer(run=RUN, digest=DIGEST, code=0)] * 50, *message(A, b""))
    client.receive(Receipt)
    assert playing.link.departures == before
    assert len([entry for entry in playing.diary.entries if entry[0] == "answered"]) == 1


def test_answers_to_another_offer_count_for_nothing(playing: World) -> None:
    client = playing.inside()
    client.receive(Offer)
    client.send(Answer(run="ff", digest=DIGEST, code=0), Answer(run=RUN, digest="e" * 64, code=0))
    client.send(Answer(run=RUN, digest=DIGEST, code=PENDING))
    playing.until(lambda: bool(playing.link.answers()))
    assert playing.link.answers() == {"north": PENDING}
    playing.link.offer("cd", "name = 'another'\n", "e" * 64)
    assert playing.link.answers() == {}
    assert client.receive(Offer).run == "cd"
    playing.link.withdraw()
    client.send(Answer(run="cd", digest="e" * 64, code=0), *message(A, b""))
    client.receive(Receipt)
    assert playing.link.answers() == {}
    assert playing.link.offered is None


def test_an_offer_that_no_site_could_read_is_not_made(world: World) -> None:
    with pytest.raises(ValueError, match=r"offer\.plan"):
        world.link.offer(RUN, "x" * (1 << 21), DIGEST)
    assert world.link.offered is None


def test_tasks_go_only_to_who_has_accepted_this_very_plan(playing: World) -> None:
    """The receipt that comes first shows that nothing was sent before."""
    playing.post(A)
    playing.post(B, run="cd")
    client = playing.inside()
    client.receive(Offer)

    def nothing_was_sent() -> bool:
        client.send(*message(C, b""))
        return client.receive(Receipt).id == C

    assert nothing_was_sent()
    client.send(Answer(run=RUN, digest=DIGEST, code=PENDING))
    assert nothing_was_sent()
    client.send(Answer(run=RUN, digest=DIGEST, code=int(Fault.POLICY_PLAN)))
    assert nothing_was_sent()
    client.send(Answer(run=RUN, digest=DIGEST, code=0))
    assert client.receive_message()[0].id == A
    assert nothing_was_sent()  # B is of another run
    playing.link.offer("cd", PLAN, DIGEST)
    client.receive(Offer)
    assert nothing_was_sent()
    client.send(Answer(run="cd", digest=DIGEST, code=0))
    assert client.receive_message()[0].id == B


# --- tasks and replies


def message(task: str, payload: bytes, compression: str = "") -> list[Frame]:
    return [begin(task, payload), *chunks(task, [payload], compression)]


@pytest.mark.parametrize("compression", ["", ZSTD])
@pytest.mark.parametrize("size", [0, 1, LARGEST_CHUNK, 3 * LARGEST_CHUNK + 1])
def test_a_task_goes_out_and_its_reply_comes_in(playing: World, size: int, compression: str) -> None:
    model, update = os.urandom(size // 2) * 2, bytes(size)
    playing.post(A, payload=model, seconds=1000.0)
    client = playing.member(compression=(compression,))
    head, payload = client.receive_message()
    assert (head.id, head.header, payload) == (A, b"head", model)
    assert head.seconds == pytest.approx(1000.0, abs=SECONDS)
    client.send(*message(A, update, compression))
    assert client.receive(Receipt) == Receipt(id=A, taken=Taken.STORED)
    assert playing.replied(A) == update
    assert playing.diary.wait_for("sent")[1:] == ("north", A, len(model))
    assert playing.diary.wait_for("stored")[1:] == ("north", A, size)
    if compression and size > 1:
        assert playing.link.connected()["north"].received < size / 10


def test_other_words_may_stand_between_the_chunks(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    head, *rest = message(A, bytes(3 * LARGEST_CHUNK))
    client.send(head)
    for chunk in rest:
        client.send(Beat(), Answer(run=RUN, digest=DIGEST, code=0), chunk)
    assert client.receive(Receipt).taken is Taken.STORED


def test_a_reply_that_comes_again_is_known(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    client.send(*message(A, b"one"), *message(A, b"two"))
    assert [client.receive(Receipt).taken for _ in range(2)] == [Taken.STORED, Taken.KNOWN]
    assert playing.replied(A) == b"one"


def test_who_was_not_asked_changes_nothing(playing: World) -> None:
    """A valid site outside the cohort: neither another's task nor one that never was takes its reply."""
    playing.post(A, "north")
    outsider = playing.member("south")
    outsider.send(*message(A, bytes(2 * LARGEST_CHUNK)), *message(B, b"forged"))
    assert [outsider.receive(Receipt) for _ in range(2)] == [Receipt(id=task, taken=Taken.UNASKED) for task in (A, B)]
    assert playing.replied(A) is None
    north = playing.member("north")
    assert north.receive_message()[0].id == A
    north.send(*message(A, b"honest"))
    assert north.receive(Receipt).taken is Taken.STORED
    outsider.send(*message(A, b"forged"))
    assert outsider.receive(Receipt).taken is Taken.UNASKED
    assert playing.replied(A) == b"honest"


def test_a_damaged_reply_may_be_sent_again(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    client.send(begin(A, b"right"), Chunk(id=A, offset=0, data=b"wrong"))
    assert client.receive(Receipt).taken is Taken.DAMAGED
    assert playing.replied(A) is None
    client.send(*message(A, b"right"))
    assert client.receive(Receipt).taken is Taken.STORED
    assert playing.replied(A) == b"right"


def test_a_reply_that_is_too_large_ends_its_task(make: Make) -> None:
    world = make(limits=Limits(largest_message=1000))
    world.offer()
    world.post(A)
    client = world.member()
    client.receive_message()
    client.send(*message(A, bytes(1001)))
    assert client.receive(Receipt).taken is Taken.TOO_LARGE
    (settled,) = world.mailbox.settled([A])
    assert (settled.state, settled.fault) == (State.REFUSED, Fault.MALFORMED_REPLY)
    world.post(B, "south")
    client.send(*message(B, bytes(1001)))  # another's task is none of its business
    assert client.receive(Receipt).taken is Taken.TOO_LARGE
    assert world.mailbox.settled([B]) == []


def test_a_task_that_is_too_large_for_its_site_is_not_sent(playing: World) -> None:
    playing.post(A, payload=bytes(1001))
    playing.post(B, payload=bytes(1000))
    client = playing.member(largest=1000)
    assert client.receive_message()[0].id == B
    (settled,) = playing.mailbox.settled([A])
    assert (settled.state, settled.fault) == (State.REFUSED, Fault.UNREACHABLE)


@pytest.mark.parametrize(
    ("said", "settled"),
    [(Taken.STORED, []), (Taken.KNOWN, []), (Taken.UNASKED, [A]), (Taken.TOO_LARGE, [A])],
    ids=lambda value: value.name if isinstance(value, Taken) else "",
)
def test_a_site_may_say_that_it_needs_no_more_of_a_task(playing: World, said: Taken, settled: list[str]) -> None:
    playing.post(A, payload=os.urandom(1 << 26))
    client = LinkClient(playing.port, AUTHORITY, credentials_of("north"), is_reading=False)
    client.send(hello("north"))
    while not isinstance(client.read_one(), Offer):
        pass
    client.send(Answer(run=RUN, digest=DIGEST, code=0))
    while not isinstance(client.read_one(), Begin):
        pass
    client.send(Receipt(id=A, taken=said), Receipt(id=C, taken=Taken.UNASKED))
    playing.until(lambda: playing.link.connected()["north"].tasks == 1)
    playing.post(B)
    chunks_of_it = 0
    while not isinstance(frame := client.read_one(), Begin):
        chunks_of_it += isinstance(frame, Chunk)
    assert frame.id == B
    assert chunks_of_it < 64  # of 128: the rest was not sent
    assert [item.id for item in playing.mailbox.settled([A])] == settled
    client.close()


def test_a_task_that_arrived_damaged_is_sent_again(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    client.send(Receipt(id=A, taken=Taken.DAMAGED))
    assert client.receive_message()[0].id == A


# --- crashes and reconnects


def test_what_was_not_answered_is_sent_again_on_a_new_stream(playing: World) -> None:
    playing.post(A)
    playing.post(B)
    for _ in range(3):
        client = playing.member()
        assert [client.receive_message()[0].id for _ in range(2)] == [A, B]
        client.close()
    client = playing.member()
    client.send(*message(B, b"reply"))
    until_receipt(client)
    client.close()
    assert playing.member().receive_message()[0].id == A


def test_what_a_site_holds_is_not_sent_again(playing: World) -> None:
    """And its reply is taken at once, before it has answered the offer."""
    playing.post(A)
    playing.post(B)
    client = playing.inside(holding=(A,))
    client.send(*message(A, b"kept"))
    client.receive(Offer)
    assert client.receive(Receipt) == Receipt(id=A, taken=Taken.STORED)
    client.send(Answer(run=RUN, digest=DIGEST, code=0))
    assert client.receive_message()[0].id == B


def test_half_a_reply_on_a_lost_stream_counts_for_nothing(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    client.send(*message(A, bytes(4 * LARGEST_CHUNK))[:-1])
    playing.until(lambda: playing.link.connected()["north"].received > 3 * LARGEST_CHUNK)
    client.close()
    playing.until(lambda: not playing.link.connected())
    assert playing.replied(A) is None
    assert playing.mailbox._file.rows("SELECT count(*) FROM payloads") == [(1,)]
    again = playing.member()
    again.receive_message()
    again.send(*message(A, b"whole"))
    assert again.receive(Receipt).taken is Taken.STORED


def test_a_site_that_hangs_up_properly_is_gone(world: World) -> None:
    client = world.inside()
    client.half_close()
    assert client.until_closed() is grpc.StatusCode.OK
    other = world.inside("south")
    other.send(Farewell(why=Goodbye.SHUTDOWN))
    assert other.until_closed() is grpc.StatusCode.OK
    world.until(lambda: not world.link.connected())
    assert world.diary.wait_for("disconnected", "north")[2] is None


# --- recall


def test_a_recalled_task_is_called_off(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    other = playing.member("south")
    playing.link.recall({A: "north", B: "south"})
    assert client.receive(Recall) == Recall(id=A)
    client.send(*message(A, b"late"))
    assert client.receive(Receipt).taken is Taken.UNASKED
    playing.post(C, "south")
    assert other.receive(Begin).id == C  # nothing was said of B, which it never had


def test_a_task_that_is_recalled_on_its_way_is_sent_no_further(playing: World) -> None:
    playing.post(A, payload=os.urandom(1 << 26))
    client = LinkClient(playing.port, AUTHORITY, credentials_of("north"), is_reading=False)
    client.send(hello("north"))
    while not isinstance(client.read_one(), Offer):
        pass
    client.send(Answer(run=RUN, digest=DIGEST, code=0))
    while not isinstance(client.read_one(), Begin):
        pass
    playing.link.recall({A: "north"})
    playing.mailbox.forget(RUN)
    playing.post(B, payload=b"next")
    kinds = [client.read_one()]
    while not isinstance(kinds[-1], Begin):
        kinds.append(client.read_one())
    assert kinds[-1].id == B
    assert Recall(id=A) in kinds
    assert len(kinds) < 64  # of 128 chunks
    client.close()


def test_a_reply_that_is_recalled_on_its_way_is_dropped(playing: World) -> None:
    """Whether the site goes on with it, or stops and begins the next."""

    def half_replies() -> int:
        (found,) = playing.mailbox._file.rows("SELECT count(*) FROM payloads WHERE kind = 0")
        return int(found[0])

    client = playing.member()
    for number, goes_on in enumerate((True, False)):
        first_task, second_task = task_id(2 * number), task_id(2 * number + 1)
        for task in (first_task, second_task):
            playing.post(task)
            client.receive_message()
        head, first, *rest = message(first_task, bytes(4 * LARGEST_CHUNK))
        client.send(head, first)
        playing.until(lambda: half_replies() == 1)
        playing.link.recall({first_task: "north"})
        assert client.receive(Recall) == Recall(id=first_task)
        client.send(*(rest if goes_on else ()), *message(second_task, b"reply"))
        assert client.receive(Receipt) == Receipt(id=first_task, taken=Taken.UNASKED)
        assert client.receive(Receipt) == Receipt(id=second_task, taken=Taken.STORED)
        assert playing.replied(first_task) is None
        assert half_replies() == 0


def test_who_holds_a_task_whose_time_is_over_is_told(playing: World) -> None:
    playing.post(A)
    playing.post(B)
    playing.link.recall({A: "north"})
    client = playing.inside(holding=(A, B, C))
    frames = [client.next_frame() for _ in range(3)]
    assert {frame.id for frame in frames if isinstance(frame, Recall)} == {A, C}
    assert any(isinstance(frame, Offer) for frame in frames)


def test_a_recalled_task_that_is_asked_again_is_sent_again(playing: World) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()
    playing.link.recall({A: "north"})
    client.receive(Recall)
    playing.post(A)
    assert client.receive_message()[0].id == A


# --- whoever misbehaves

_BAD: dict[str, list[Frame | bytes]] = {
    "no frame": [b"\xff\xff"],
    "empty": [b""],
    "Hello again": [hello("north")],
    "Welcome": [Welcome(software="", beat_seconds=1.0, clock=0.0)],
    "Offer": [Offer(run="0", plan="x", digest=DIGEST)],
    "Recall": [Recall(id=A)],
    "chunk of nothing": [Chunk(id=A, offset=0, data=b"x")],
    "chunk after the end": [*message(A, b"all"), Chunk(id=A, offset=3, data=b"x")],
    "chunk out of order": [begin(A, bytes(9)), Chunk(id=A, offset=3, data=b"x")],
    "chunk too long": [begin(A, b"short"), Chunk(id=A, offset=0, data=b"longer")],
    "chunk of another": [begin(A, b"long"), Chunk(id=B, offset=0, data=b"l")],
    "two messages at once": [begin(A, b"one"), begin(B, b"two")],
    "the same twice": [begin(A, b"one"), begin(A, b"one")],
    "compressed": [begin(A, b"xx"), Chunk(id=A, offset=0, data=b"x", raw=2)],
    "other's chunks after a refusal": [begin(C, b"one"), Chunk(id=B, offset=0, data=b"x")],
}


@pytest.mark.parametrize("said", _BAD.values(), ids=_BAD)
def test_what_is_out_of_place_ends_the_stream_and_nothing_else(playing: World, said: list[Frame | bytes]) -> None:
    playing.post(A)
    playing.post(B)
    client = playing.member()
    client.receive_message()
    for frame in said:
        client.send_bytes(frame if isinstance(frame, bytes) else encode(frame))
    assert client.farewell() is Goodbye.MALFORMED
    assert client.until_closed() is grpc.StatusCode.OK
    playing.diary.wait_for("disconnected", "north", Goodbye.MALFORMED)
    assert playing.replied(B) is None
    works(playing)
    works(playing, "north")


def test_a_frame_larger_than_any_is_not_even_read(playing: World) -> None:
    client = playing.inside()
    client.send_bytes(bytes(LARGEST_FRAME + 1))
    assert client.until_closed() is grpc.StatusCode.RESOURCE_EXHAUSTED
    works(playing)


def test_the_library_decompresses_nothing(playing: World) -> None:
    """64 MiB of zeros in 64 KiB would be 64 MiB in memory before anybody could look."""
    client = playing.client(compression=grpc.Compression.Gzip)
    client.send_bytes(bytes(1 << 26))
    assert client.until_closed() is grpc.StatusCode.UNIMPLEMENTED
    works(playing)


def test_there_is_nothing_else_to_call(world: World) -> None:
    client = world.client()
    with pytest.raises(grpc.RpcError) as refused:
        next(client.channel.stream_stream("/veil.link.Link/Other")(iter([b""])))
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_hostile_frames_over_the_wire(playing: World) -> None:
    """300 mutated frames, one after another on as few streams as they leave standing."""
    rng = random.Random(5)
    client: LinkClient | None = None
    ended = 0
    for _ in range(300):
        if client is None:
            client = playing.inside()
        client.send_bytes(mutated(rng))
        client.send(begin(C, b""))
        try:
            while not isinstance(frame := client.next_frame(), Receipt | Farewell):
                pass
        except ClosedError:
            frame = Farewell(why=Goodbye.MALFORMED)
        if isinstance(frame, Farewell):
            client.close()
            client, ended = None, ended + 1
    assert ended > 50
    assert [entry for entry in playing.diary.entries if entry[0] == "failed"] == []
    works(playing)


def mutated(rng: random.Random) -> bytes:
    """What a hostile site may say once it is inside: bytes, or frames in any order and with any bytes changed."""
    payload = rng.randbytes(rng.randrange(300))
    task = rng.choice((A, B, C))
    good: list[Frame] = [
        begin(task, payload),
        begin(task, payload, size=rng.randrange(400)),
        Chunk(id=task, offset=rng.randrange(3), data=payload or b"x"),
        Chunk(id=task, offset=0, data=payload or b"x", raw=rng.randrange(LARGEST_CHUNK)),
        Receipt(id=task, taken=rng.choice(list(Taken))),
        Answer(run=RUN, digest=DIGEST, code=rng.randrange(3)),
        Beat(),
        Recall(id=task),
        hello("north", holding=(task,)),
        Farewell(why=rng.choice(list(Goodbye))),
    ]
    data = bytearray(encode(rng.choice(good)))
    for _ in range(rng.choice((0, 0, 1, 1, 3))):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(4):
            case 0 if place < len(data):
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randrange(8)]
            case 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 8))
            case _:
                data += encode(rng.choice(good))
    return bytes(data)


# --- a stream without a network: what it reads and writes is in a test's hands


class Wire:
    """A site's end: says what it is told to, and reads as much as `window` allows (None: everything)."""

    def __init__(self, said: Iterator[bytes], window: int | None = None) -> None:
        self.read_count = 0
        self.written: list[Frame] = []
        self._said = said
        self._window = window

    async def read(self) -> bytes | None:
        await asyncio.sleep(0)
        self.read_count += 1
        return next(self._said, None)

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self._window is not None and len(self.written) >= self._window:
            await asyncio.Event().wait()
        self.written.append(decode(data))


def test_thousands_of_hostile_frames_against_a_stream(tmp_path: Path) -> None:
    """2500 streams of up to 6 hostile frames each, after a good Hello or none. Each ends; the mailbox is as it was."""
    world = World(tmp_path / "mailbox.sqlite")
    world.offer()
    world.post(A, payload=b"model")
    world.post(B, "south")
    rng = random.Random(6)
    pem = credentials_of("north").certificate
    ends: dict[Goodbye | None, int] = {}

    async def stream() -> None:
        frames = [mutated(rng) for _ in range(rng.randrange(1, 7))]
        frames.insert(rng.choice((0, 0, 0, 0, 1)), encode(hello("north", compression=(ZSTD,))))
        wire = Wire(iter(frames))
        await asyncio.wait_for(world.link.serve(pem, wire.read, wire.write), SECONDS)
        last = wire.written[-1] if wire.written else None
        why = last.why if isinstance(last, Farewell) else None
        ends[why] = ends.get(why, 0) + 1

    async def streams() -> None:
        for _ in range(2500):
            await stream()

    try:
        asyncio.run(streams())
        assert [entry for entry in world.diary.entries if entry[0] == "failed"] == []
        assert ends[None] > 200
        assert ends[Goodbye.MALFORMED] > 200
        assert world.link.connected() == {}
        assert world.mailbox.waiting(RUN, "train").get(B) == "south"
        assert world.mailbox._file.rows("SELECT count(*) FROM payloads WHERE kind = 0") == [(0,)]
    finally:
        world.close()
    world = World(tmp_path / "mailbox.sqlite").start()
    try:
        works(world)
    finally:
        world.close()


def test_who_does_not_read_is_read_no_further(tmp_path: Path) -> None:
    """Receipts pile up to their limit; then nothing more is taken in, and in the end the stream is given up."""
    limits = Limits(receipts=16, stall_seconds=0.2, farewell_seconds=0.05)
    world = World(tmp_path / "mailbox.sqlite", limits=limits, beat_seconds=BEAT)

    def flood() -> Iterator[bytes]:
        yield encode(hello("north"))
        while True:
            yield encode(begin(A, b""))

    wire = Wire(flood(), window=3)
    try:
        asyncio.run(
            asyncio.wait_for(world.link.serve(credentials_of("north").certificate, wire.read, wire.write), SECONDS)
        )
    finally:
        world.close()
    assert wire.read_count < 3 + 16 + 5
    assert world.diary.wait_for("disconnected")[2] is Goodbye.SILENT


def test_a_task_is_read_from_the_disk_no_faster_than_its_site_reads(tmp_path: Path) -> None:
    world = World(
        tmp_path / "mailbox.sqlite", limits=Limits(stall_seconds=0.2, farewell_seconds=0.05), beat_seconds=BEAT
    )
    world.offer()
    world.post(A, payload=os.urandom(1 << 24))
    pulled = 0
    payload = world.mailbox.payload

    def counted(digest: bytes) -> Iterator[bytes]:
        nonlocal pulled
        for part in payload(digest):
            pulled += 1
            yield part

    world.mailbox.payload = counted  # type: ignore[method-assign]

    def said() -> Iterator[bytes]:
        yield encode(hello("north"))
        yield encode(Answer(run=RUN, digest=DIGEST, code=0))
        while True:
            yield encode(Beat())

    wire = Wire(said(), window=6)  # Welcome, offer, head, three chunks
    try:
        asyncio.run(
            asyncio.wait_for(world.link.serve(credentials_of("north").certificate, wire.read, wire.write), SECONDS)
        )
    finally:
        world.close()
    assert [type(frame) for frame in wire.written if not isinstance(frame, Beat)][:3] == [Welcome, Offer, Begin]
    assert 1 <= pulled <= 4 + 1


# --- bounded, with many and much


def test_a_site_that_never_reads_holds_nobody_up(playing: World) -> None:
    """Over the network: 64 MiB for two sites, one of which reads nothing. The other gets it all."""
    model = os.urandom(1 << 26)
    stalled = LinkClient(playing.port, AUTHORITY, credentials_of("north"), is_reading=False)
    stalled.send(hello("north"), Answer(run=RUN, digest=DIGEST, code=0))
    playing.until(lambda: playing.link.answers().get("north") == 0)
    playing.post(A, payload=model)
    client = playing.member("south")
    for task in (B, C):
        playing.post(task, "south", payload=model)
        assert client.receive_message()[1] == model
    assert playing.link.connected()["north"].sent < 1 << 24
    assert playing.mailbox._file.rows("SELECT count(*) FROM payloads") == [(1,)]
    stalled.close()


def test_one_payload_for_eight_sites_is_held_once(make: Make) -> None:
    sites = [f"site-{number}" for number in range(8)]
    world = make(sites)
    world.offer()
    model = os.urandom(1 << 24)
    clients = [world.member(site) for site in sites]
    for number, site in enumerate(sites):
        world.post(task_id(number), site, payload=model)
    for number, client in enumerate(clients):
        head, payload = client.receive_message()
        assert head.id == task_id(number)
        assert payload == model
    assert world.mailbox._file.rows("SELECT count(*) FROM parts") == [(32,)]


def test_two_hundred_sites(make: Make) -> None:
    sites = [f"site-{number}" for number in range(200)]
    world = make(sites, beat_seconds=2.0)
    world.offer()
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith("veil-link")}
    clients = {site: world.client(site) for site in sites}
    for site, client in clients.items():
        client.send(hello(site), Answer(run=RUN, digest=DIGEST, code=0))
    world.until(lambda: len(world.link.answers()) == 200)
    for number, site in enumerate(sites):
        world.post(task_id(number), site)
    for client in clients.values():
        client.receive(Welcome)
        client.receive(Offer)
        head = client.receive_message()[0]
        client.send(*message(head.id, b"update"))
    for client in clients.values():
        assert client.receive(Receipt).taken is Taken.STORED
    assert set(world.link.connected()) == set(sites)
    now = {thread.name for thread in threading.enumerate() if thread.name.startswith("veil-link")}
    assert len(now - threads) <= 4  # those for the disk


def test_a_site_that_sends_too_fast_is_slowed_down_alone(make: Make) -> None:
    world = make(limits=Limits(frames_per_second=100.0, frames_burst=10.0, hello_gap_seconds=0.0))
    world.offer()
    fast = world.inside("north")
    begun = time.monotonic()
    fast.send(*[Beat()] * 60, begin(A, b""))
    works(world, "south")
    until_receipt(fast)
    assert time.monotonic() - begun > 0.4  # 61 frames, of which 10 were free
    again = world.inside("north")  # coming in anew doesn't help
    begun = time.monotonic()
    again.send(*[Beat()] * 40, begin(A, b""))
    until_receipt(again)
    assert time.monotonic() - begun > 0.3


def test_a_token_bucket_gives_its_rate_and_its_burst() -> None:
    bucket = TokenBucket(rate=10.0, burst=3.0)
    assert [round(bucket.take(0.0), 6) for _ in range(5)] == [0.0, 0.0, 0.0, 0.1, 0.2]
    assert bucket.take(0.3) == 0.0
    assert bucket.take(0.2) > 0.0  # a clock that goes back gives nothing
    assert [bucket.take(100.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(100.0) > 0.0


# --- time


def test_both_sides_beat(make: Make) -> None:
    """Who beats stays for much longer than three beats, and hears beats."""
    world = make(beat_seconds=BEAT)
    client = world.inside()
    begun, heard = time.monotonic(), 0
    while time.monotonic() - begun < 6 * BEAT:
        assert isinstance(client.next_frame(), Beat)
        client.send(Beat())
        heard += 1
    assert heard >= 3
    assert set(world.link.connected()) == {"north"}
    assert world.link.connected()["north"].silent < 3 * BEAT + SECONDS


def test_who_is_silent_for_three_beats_is_gone(make: Make) -> None:
    world = make(beat_seconds=BEAT)
    begun = time.monotonic()
    assert world.inside().farewell() is Goodbye.SILENT
    assert time.monotonic() - begun > 2.9 * BEAT
    world.until(lambda: not world.link.connected())


def test_a_clock_that_jumps_does_no_harm(make: Make) -> None:
    world = make(beat_seconds=BEAT)
    client = world.inside()
    for jump in (3600.0, -200.0, 0.0):
        world.clock_error = jump
        for _ in range(4):
            assert isinstance(client.next_frame(), Beat)
            client.send(Beat())
    assert set(world.link.connected()) == {"north"}


def test_a_certificate_that_expires_ends_the_stream(make: Make) -> None:
    world = make(beat_seconds=BEAT)
    client = world.inside()
    world.clock_error = 2 * DAY
    assert client.farewell() is Goodbye.EXPIRED


def test_revocation_is_noticed_at_the_next_beat(make: Make) -> None:
    world = make(beat_seconds=BEAT)
    revoked, removed = world.inside("north"), world.inside("south")
    world.revoked.add("north")
    del world.sites["south"]
    assert revoked.farewell() is Goodbye.REVOKED
    assert removed.farewell() is Goodbye.UNKNOWN_SITE


def test_revocation_is_noticed_at_the_next_message(playing: World) -> None:
    """Long before the next beat; the reply is not taken."""
    playing.post(A)
    client = playing.member()
    client.receive_message()
    playing.revoked.add("north")
    client.send(*message(A, b"update"))
    assert client.farewell() is Goodbye.REVOKED
    assert playing.replied(A) is None


def test_a_site_is_closed_at_once(playing: World) -> None:
    playing.post(A)
    client, other = playing.member("north"), playing.member("south")
    client.receive_message()
    head, first, *_ = message(A, bytes(4 * LARGEST_CHUNK))
    client.send(head, first)
    playing.link.close_site("north", Goodbye.REVOKED)
    playing.link.close_site("nobody", Goodbye.REVOKED)
    assert client.farewell() is Goodbye.REVOKED
    playing.until(lambda: set(playing.link.connected()) == {"south"})
    other.send(*message(C, b""))
    assert other.receive(Receipt).taken is Taken.UNASKED


# --- the server's own troubles


@pytest.mark.parametrize("why", [Goodbye.SHUTDOWN, Goodbye.DONE])
def test_the_server_says_goodbye(playing: World, why: Goodbye) -> None:
    clients = [playing.member(site) for site in ("north", "south")]
    silent = playing.client("east")
    grpc.channel_ready_future(silent.channel).result(SECONDS)
    playing.link.stop(why=why)
    assert [client.farewell() for client in clients] == [why, why]
    assert playing.link.connected() == {}
    playing.link.stop()
    playing.link.notify_tasks(["north"])
    playing.link.close_site("north", why)


def test_a_failing_disk_ends_the_stream_and_the_site_may_come_again(
    playing: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing.post(A)
    client = playing.member()
    client.receive_message()

    def full(*_: object) -> Taken:
        raise MailboxError("secret text")

    with monkeypatch.context() as patch:
        patch.setattr(playing.mailbox, "finish_reply", full)
        client.send(*message(A, b"update"))
        assert client.farewell() is Goodbye.BUSY
    failed = playing.diary.wait_for("failed", "north")
    assert failed[2].startswith("MailboxError at ")
    assert "secret" not in failed[2]
    again = playing.member()
    again.receive_message()
    again.send(*message(A, b"update"))
    assert again.receive(Receipt).taken is Taken.STORED


def test_an_address_that_is_taken_is_said(world: World, tmp_path: Path) -> None:
    second = World(tmp_path / "second.sqlite")
    second.link._listener._address = f"127.0.0.1:{world.port}"
    with pytest.raises(RunError, match=f"127.0.0.1:{world.port}: can't listen there"):
        second.start()
    second.close()
    with socket.create_connection(("127.0.0.1", world.port), SECONDS):
        works(world)


def test_waiting_has_an_end(world: World) -> None:
    begun = time.monotonic()
    assert not world.link.wait(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - begun < SECONDS
    assert world.link.wait(lambda: True, 0.0)


def test_who_waits_is_woken_by_what_happens(world: World) -> None:
    seen = threading.Event()
    waiter = threading.Thread(
        target=lambda: world.link.wait(lambda: "north" in world.link.connected(), SECONDS) and seen.set()
    )
    waiter.start()
    world.inside()
    assert seen.wait(SECONDS)
    waiter.join()
