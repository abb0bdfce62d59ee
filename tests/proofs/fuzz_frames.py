"""Hostile frames for the link: bytes to its parser, streams to the server's end of it, and streams to a site's.

Most frames are good ones spoiled, since random bytes alone get no further than the first check.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc

from client.dialing import CutError
from client.outbox import Outbox, Reply
from client.session import Session, Taking
from security import link_pb2
from security.chunks import ZSTD, chunks
from security.frames import (
    LARGEST_CHUNK,
    LARGEST_FRAME,
    LARGEST_HEADER,
    LARGEST_MESSAGE,
    LARGEST_PLAN,
    Answer,
    Beat,
    Begin,
    Chunk,
    Farewell,
    Frame,
    FrameError,
    Goodbye,
    Hello,
    Offer,
    Recall,
    Receipt,
    Taken,
    Welcome,
    decode,
    encode,
)
from server.limits import Limits
from server.mailbox import Payload, Task
from tests.server.link_client import SECONDS, LinkClient, begin, hello, task_id
from tests.server.link_world import AUTHORITY, DIGEST, PLAN, RUN, World, credentials_of

Outcomes = Counter[str]

OTHERS = task_id(-1)  # a task of another site's: whatever north says, it must stay open
_TASKS = tuple(task_id(number) for number in range(4))
_LARGEST = 4096  # bytes of a message in these tests
_HUGE = (0, 1, LARGEST_CHUNK, LARGEST_MESSAGE, LARGEST_MESSAGE + 1, 2**32 - 1, 2**63, 2**64 - 1)
_TEXTS = ("", "..", "a\x00b", "north", "5F" * 32, "é" * 99, "x" * 70_000, "0" * 64, "'; drop table tasks; --")
_FLOATS = (0.0, -1.0, 1e-300, 1e300, float("nan"), float("inf"), 366 * 86400.0)


# --- to the parser


def parse(rng: random.Random, number: int) -> Outcomes:
    """So many byte strings for `decode`: a frame that could be sent, or `FrameError`, and nothing else."""
    found: Outcomes = Counter()
    for _ in range(number):
        data = rng.randbytes(rng.randrange(200)) if rng.random() < 0.1 else spoiled(rng, any_frame(rng))
        try:
            frame = decode(data)
        except FrameError:
            found["refused"] += 1
            continue
        assert decode(encode(frame)) == frame
        found["a frame within its bounds"] += 1
    return found


def any_frame(rng: random.Random) -> bytes:
    """A frame of any kind; half of them with fields of any value."""
    frame = rng.choice((from_site, from_server))(rng)
    if rng.random() < 0.5:
        return encode(frame)
    kind = type(frame).__name__
    message = getattr(link_pb2, kind)()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.7:
            _set(rng, message, field)
    return bytes(link_pb2.Frame(**{kind.lower(): message}).SerializeToString())


def _set(rng: random.Random, message: Any, field: Any) -> None:
    if field.type == field.TYPE_DOUBLE:
        value: Any = rng.choice(_FLOATS)
    elif field.type == field.TYPE_BYTES:
        value = rng.randbytes(rng.choice((0, 1, 31, 32, 33, LARGEST_HEADER + 1)))
    elif field.type == field.TYPE_STRING:
        value = rng.choice((*_TEXTS, *_TASKS))
    else:
        value = rng.choice(_HUGE) % (1 << (32 if field.type == field.TYPE_UINT32 else 64))
    try:
        if field.name in ("compression", "holding") and not isinstance(getattr(message, field.name), str):
            getattr(message, field.name).extend([value] * (1 if len(value) > 999 else rng.choice((0, 1, 9, 1025))))
        else:
            setattr(message, field.name, value)
    except ValueError:  # the library itself won't write it
        return


def spoiled(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut, put in, doubled, or joined with another frame; now and then none, or far too many."""
    found = bytearray(data)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
        place = rng.randrange(len(found) + 1)
        match rng.randrange(8):
            case 0 | 1 if place < len(found):
                found[place] = rng.randrange(256)
            case 2 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 3:
                del found[place : place + rng.randrange(8)]
            case 4:
                found[place:place] = rng.randbytes(rng.randrange(1, 8))
            case 5:
                found[place:place] = b"\xff" * rng.randrange(1, 12)  # a length without end
            case 6:
                found = found[:place] + found[rng.randrange(len(found) + 1) :]
            case _:
                found += encode(from_site(rng))
    if rng.random() < 0.001:
        found += bytes(LARGEST_FRAME)
    return bytes(found)


def from_site(rng: random.Random) -> Frame:
    """What a site may say, about tasks that were asked of it, of another, or of nobody."""
    task = rng.choice((*_TASKS, *_TASKS, OTHERS, task_id(99)))
    payload = rng.randbytes(rng.choice((0, 1, 20, 300)))
    claimed = rng.choice((len(payload), len(payload), 0, 7, _LARGEST, _LARGEST + 1, LARGEST_MESSAGE))
    return rng.choice(
        (
            begin(task, payload),
            begin(task, payload, size=claimed, header=rng.randbytes(rng.choice((0, 9, LARGEST_HEADER)))),
            Chunk(id=task, offset=rng.choice((0, 0, 0, 1, claimed)), data=payload or b"x"),
            Chunk(id=task, offset=0, data=_packed(payload), raw=rng.choice((len(payload), 1, LARGEST_CHUNK))),
            Receipt(id=task, taken=rng.choice(list(Taken))),
            Answer(run=rng.choice((RUN, RUN, "ff")), digest=DIGEST, code=rng.choice((0, 0, 1, 1004, 1 << 16))),
            Beat(),
            hello("north", holding=(task,), compression=(ZSTD, "none")),
            hello(rng.choice(("north", "south", "nobody")), federation=rng.choice(("clinics", "another")), protocol=2),
            Farewell(why=rng.choice(list(Goodbye))),
        )
    )


def from_server(rng: random.Random) -> Frame:
    """What a server may say."""
    task = rng.choice((*_TASKS, task_id(99)))
    payload = rng.randbytes(rng.choice((0, 1, 20, 300)))
    return rng.choice(
        (
            *(begin(task, payload), Chunk(id=task, offset=0, data=payload or b"x")),
            begin(task, payload, size=rng.choice((0, 7, _LARGEST + 1, LARGEST_MESSAGE)), seconds=rng.random()),
            Chunk(id=task, offset=0, data=_packed(payload), raw=rng.choice((len(payload), LARGEST_CHUNK))),
            Offer(run=RUN, plan=rng.choice((PLAN, "x" * 999, "\x00", "x" * LARGEST_PLAN)), digest=DIGEST),
            Receipt(id=task, taken=rng.choice(list(Taken))),
            *(Recall(id=task), Beat(), welcome(rng), Farewell(why=rng.choice(list(Goodbye)))),
        )
    )


def welcome(rng: random.Random) -> Welcome:
    """What a server answers to a Hello."""
    largest = rng.choice((1, 1000, LARGEST_MESSAGE))
    return Welcome(software="1", beat_seconds=10.0, clock=0.0, largest=largest, compression=rng.choice(("", ZSTD)))


def _packed(payload: bytes) -> bytes:
    """As a compressed chunk; a small one may say that it holds 400 kB of zeros."""
    return next(chunks(task_id(0), [payload + bytes(400_000)], ZSTD)).data


# --- to the server's end, without a network


class Wire:
    """A site's end in a program's hands: says what it is given, and reads everything."""

    def __init__(self, said: Iterator[bytes]) -> None:
        self.read_count = 0
        self.last: Frame | None = None
        self._said = said

    async def read(self) -> bytes | None:
        await asyncio.sleep(0)
        data = next(self._said, None)
        self.read_count += data is not None
        return data

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        self.last = decode(data)


def hostile_stream(rng: random.Random, site: str = "north") -> Iterator[bytes]:
    """Frames that a hostile site says: nearly always a good Hello first, else nothing of the rest would be heard."""
    if rng.random() < 0.95:
        yield encode(hello(site, compression=(ZSTD,)))
        if rng.random() < 0.7:
            yield encode(Answer(run=RUN, digest=DIGEST, code=0))
    for _ in range(rng.randrange(1, 12)):
        if rng.random() < 0.3:  # a message in good order, so that what comes after it is heard as well
            payload = rng.randbytes(rng.randrange(300))
            task = rng.choice((*_TASKS, OTHERS))
            yield from map(encode, (begin(task, payload), *chunks(task, [payload], rng.choice(("", ZSTD)), size=100)))
        frame = encode(from_site(rng))
        yield frame if rng.random() < 0.7 else spoiled(rng, frame)


def world_of(path: Path) -> World:
    """A federation whose sites may say as much as they like: bounds in time would only slow this down."""
    limits = Limits(
        hello_gap_seconds=0.0, frames_per_second=1e9, frames_burst=1e9, largest_message=_LARGEST, streams_of_site=64
    )
    world = World(path, ("north", "south", "east"), limits=limits)
    world.offer()
    _ask_anew(world)
    return world


def to_server(rng: random.Random, number: int, path: Path) -> Outcomes:
    """At least so many frames for `LinkServer.serve`; then another site is served, and north as well."""
    world, found = world_of(path), Counter[str]()
    pem = credentials_of("north").certificate

    async def stream() -> None:
        wire = Wire(hostile_stream(rng))
        await asyncio.wait_for(world.link.serve(pem, wire.read, wire.write), SECONDS)
        _count(found, wire.read_count, wire.last)

    async def streams() -> None:
        while found.total() < number:
            if rng.random() < 0.1:
                _ask_anew(world)
            # Now and then two at once: the newer one takes the older one's place.
            await asyncio.gather(*(stream() for _ in range(2 if rng.random() < 0.05 else 1)))
            _unharmed(world)

    try:
        asyncio.run(streams())
        assert world.mailbox._file.rows("SELECT count(*) FROM payloads WHERE kind = 0") == [(0,)]  # half replies
    finally:
        world.close()
    world = World(path, ("north", "south", "east")).start()
    try:
        lives(world)
    finally:
        world.close()
    return found


def _ask_anew(world: World) -> None:
    """Tasks that north has not answered yet, whatever it said before."""
    world.mailbox.forget(RUN)
    asked = [(task, "north") for task in _TASKS] + [(OTHERS, "south")]
    payload = Payload.of(b"model")
    world.mailbox.post(
        [
            Task(id=task, site=site, payload=payload, run=RUN, kind="train", group="1", header=b"head")
            for task, site in asked
        ]
    )


def _unharmed(world: World) -> None:
    failed = [entry for entry in world.diary.entries if entry[0] == "failed"]
    assert not failed, failed[0]
    assert world.link.connected() == {}
    assert world.mailbox.waiting(RUN, "train").get(OTHERS) == "south", "a site has settled another's task"
    world.diary.entries.clear()


def _count(found: Outcomes, read: int, last: Frame | None) -> None:
    """Each frame that was read was taken, but the last of a stream that was ended for it."""
    why = last.why if isinstance(last, Farewell) else None
    if why is not None and read:
        found[f"ended the stream ({why.reason})"] += 1
        read -= 1
    found["taken"] += read


def lives(world: World) -> None:
    """Good sites are served: they come in, and their replies are stored."""
    world.offer()
    for site in ("south", "north"):
        task = sha256(site.encode()).hexdigest()
        world.post(task, site)
        client = world.member(site)
        while client.receive_message()[0].id != task:
            pass
        client.send_message(task, b"update")
        receipt = client.next_frame()
        while not isinstance(receipt, Receipt):
            receipt = client.next_frame()
        assert receipt == Receipt(id=task, taken=Taken.STORED)
        client.close()


# --- to the server's end, over TLS


def over_tls(rng: random.Random, number: int, path: Path) -> Outcomes:
    """At least so many frames from a site with a good certificate, over real connections."""
    world, found = world_of(path).start(), Counter[str]()
    try:
        while found.total() < number:
            if rng.random() < 0.1:
                _ask_anew(world)
            sent = list(hostile_stream(rng))
            with LinkClient(world.port, AUTHORITY, credentials_of("north")) as client:
                for data in sent:
                    client.send_bytes(data)
                client.half_close()
                last: Frame | None = None
                while isinstance(frame := _next(client), Frame):
                    last = frame
                assert frame in (grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED), frame
            why = last.why.reason if isinstance(last, Farewell) else None
            if frame is grpc.StatusCode.RESOURCE_EXHAUSTED:
                why = "a frame too large to be read"
            found["of a stream heard to its end" if why is None else f"of a stream ended early ({why})"] += len(sent)
            world.until(lambda: not world.link.connected())
            _unharmed(world)
        lives(world)
    finally:
        world.close()
    return found


def _next(client: LinkClient) -> Frame | grpc.StatusCode:
    frame = client._in.get(timeout=SECONDS)
    return client.call.code() if frame is None else frame


# --- to a site's end


class Desk:
    """Takes every task that is small enough, as an agent does."""

    def __init__(self) -> None:
        self.tasks = 0

    def welcomed(self, welcome: Welcome) -> None: ...

    def offered(self, offer: Offer) -> None: ...

    async def begins(self, begin: Begin) -> Taking:
        return Taking.TAKE if begin.size <= _LARGEST else Taking.SKIP

    def received(self, begin: Begin, payload: bytearray) -> None:
        assert sha256(payload).digest() == begin.digest
        self.tasks += 1

    async def damaged(self, begin: Begin) -> None: ...

    def recalled(self, task_id: str) -> None: ...

    async def may_leave(self, reply: Reply) -> bool:
        return True

    async def delivered(self, reply_id: str, taken: Taken) -> None: ...


class Server:
    """A hostile server's end of a stream."""

    def __init__(self, said: Iterator[bytes], *, cuts: bool) -> None:
        self.read_count = 0
        self._said = said
        self._cuts = cuts

    async def write(self, data: bytes) -> None:
        decode(data)
        await asyncio.sleep(0)

    async def read(self) -> bytes | None:
        await asyncio.sleep(0)
        data = next(self._said, None)
        self.read_count += data is not None
        if data is None and self._cuts:
            raise CutError("unavailable")
        return data

    async def end(self) -> None: ...

    async def close(self) -> None: ...


def to_site(rng: random.Random, number: int, path: Path) -> Outcomes:
    """At least so many frames from a hostile server: each stream ends in good order, with a reason."""
    found: Outcomes = Counter()
    outbox = Outbox.open(path)
    for task in _TASKS[:2]:
        outbox.store(task, header=b"head", payload=rng.randbytes(300_000))
    greeting: Callable[[], Hello] = lambda: replace(hello("north"), compression=rng.choice(((), (ZSTD,))))  # noqa: E731

    def said() -> Iterator[bytes]:
        if rng.random() < 0.95:
            yield encode(replace(welcome(rng), compression=""))
        for _ in range(rng.randrange(1, 12)):
            frame = encode(from_server(rng))
            yield frame if rng.random() < 0.7 else spoiled(rng, frame)

    async def streams() -> None:
        while found.total() < number:
            server, desk = Server(said(), cuts=rng.random() < 0.1), Desk()
            session = Session(server, desk, outbox, greeting())
            for task in _TASKS[:2]:
                session.send(task)
            end = await asyncio.wait_for(session.run(), SECONDS)
            assert end.why in ("farewell", "ended", "malformed", "unavailable"), end
            if server.read_count:
                found["taken"] += server.read_count - 1
                found[f"the last of a stream ({'cut' if end.why == 'unavailable' else end.why})"] += 1

    try:
        asyncio.run(streams())
    finally:
        outbox.close()
    return found
