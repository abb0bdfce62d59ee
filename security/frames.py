"""The frames of the link: the only reader and writer of `link.proto`, which bounds and checks every field.

Whoever is at the other end may be hostile. A frame that is not exactly one of these, within these bounds, is refused
with `FrameError`, whose text never holds what was sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from security import link_pb2

PROTOCOL: Final = 1
SERVICE: Final = "veil.link.Link"
METHOD: Final = "Connect"

LARGEST_CHUNK: Final = 1 << 19  # bytes of payload in a chunk, compressed or not
LARGEST_PLAN: Final = 1 << 20
LARGEST_HEADER: Final = 1 << 12
LARGEST_FRAME: Final = LARGEST_PLAN + (1 << 16)  # of any frame on the wire
LARGEST_MESSAGE: Final = 1 << 40  # of any payload; both sides set lower limits of their own
_MOST_HOLDING: Final = 1024
_MOST_COMPRESSIONS: Final = 8
_LONGEST_SECONDS: Final = 366 * 86400.0

_ID = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # a site's or federation's
_RUN = re.compile(r"[0-9a-f]{1,64}")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{0,64}")  # version, compression


class FrameError(ValueError):
    """Bytes that are no frame, or a frame out of bounds or out of place."""


class Goodbye(IntEnum):
    """Why the server ends a stream."""

    DONE = 0
    """All plans are played."""
    SHUTDOWN = 1
    """The server stops for now."""
    REPLACED = 2
    """The site has opened another stream."""
    BUSY = 3
    """As many sites are connected as the server takes, or this one asks too often."""
    MALFORMED = 4
    """What was sent is no frame, or out of place."""
    PROTOCOL = 5
    """The server speaks another version of the link."""
    UNKNOWN_SITE = 6
    """The certificate names a site that is not of this federation."""
    OTHER_SITE = 7
    """The site calls itself by another name than its certificate."""
    OTHER_FEDERATION = 8
    """The site asks for another federation."""
    REVOKED = 9
    """The certificate was revoked."""
    EXPIRED = 10
    """The certificate has expired, or is not valid yet."""
    SILENT = 11
    """Nothing was heard for too long."""

    @property
    def is_final(self) -> bool:
        """Whether calling again without a change at the site is of no use."""
        return self in _FINAL

    @property
    def reason(self) -> str:
        """The code as outputs print it, e.g. `unknown-site`."""
        return self.name.lower().replace("_", "-")


_FINAL = (
    Goodbye.PROTOCOL,
    Goodbye.UNKNOWN_SITE,
    Goodbye.OTHER_SITE,
    Goodbye.OTHER_FEDERATION,
    Goodbye.REVOKED,
)


class Taken(IntEnum):
    """What became of a message at its receiver."""

    STORED = 0
    """It is on the disk."""
    KNOWN = 1
    """It was on the disk already."""
    UNASKED = 2
    """Nobody waits for it: it was never asked for, of this site, or its time is over."""
    TOO_LARGE = 3
    """It is larger than the receiver takes."""
    DAMAGED = 4
    """Its digest is wrong; it may be sent again."""


@dataclass(frozen=True, kw_only=True)
class Hello:
    """A site's first word. `holding` are the tasks it need not be sent again."""

    software: str
    federation: str
    site: str
    compression: tuple[str, ...] = ()
    holding: tuple[str, ...] = ()
    largest: int = LARGEST_MESSAGE
    protocol: int = PROTOCOL


@dataclass(frozen=True, kw_only=True)
class Welcome:
    """The server's answer to a good Hello. `clock` is in seconds since 1970."""

    software: str
    beat_seconds: float
    clock: float
    compression: str = ""
    largest: int = LARGEST_MESSAGE
    protocol: int = PROTOCOL


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A plan that is about to be played: resolved, as TOML."""

    run: str
    plan: str
    digest: str


ACCEPTED: Final = 0
PENDING: Final = 1  # the owner has yet to approve


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Whether a site takes part: `ACCEPTED`, `PENDING`, or the code of a fault."""

    run: str
    digest: str
    code: int


@dataclass(frozen=True, kw_only=True)
class Begin:
    """The head of a message. `seconds` are left for it, 0 without a deadline."""

    id: str
    header: bytes
    size: int
    digest: bytes
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A part of the payload. `raw` is how many bytes compressed data holds, 0 for data as it is."""

    id: str
    offset: int
    data: bytes
    raw: int = 0


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a message."""

    id: str
    taken: Taken


@dataclass(frozen=True, kw_only=True)
class Recall:
    """A task whose time is over."""

    id: str


@dataclass(frozen=True)
class Beat:
    """Still there."""


@dataclass(frozen=True, kw_only=True)
class Farewell:
    """Why the stream ends."""

    why: Goodbye


Frame = Hello | Welcome | Offer | Answer | Begin | Chunk | Receipt | Recall | Beat | Farewell


def encode(frame: Frame) -> bytes:
    """A frame on the wire.

    Raises:
        FrameError: a field is out of bounds: nobody would take it.
    """
    name, write = _WRITERS[type(frame)]
    _CHECKS[type(frame)](frame)
    encoded: bytes = link_pb2.Frame(**{name: write(frame)}).SerializeToString()
    return encoded


def decode(data: bytes) -> Frame:
    """What was sent.

    Raises:
        FrameError: it is no frame, or a field is out of bounds.
    """
    if len(data) > LARGEST_FRAME:
        raise FrameError("larger than any frame")
    try:
        found = link_pb2.Frame.FromString(data)
    except DecodeError:
        raise FrameError("no frame") from None
    name = found.WhichOneof("kind")
    if name is None:
        raise FrameError("no kind of frame that is known")
    try:
        frame = _READERS[name](getattr(found, name))
    except ValueError:  # a code that is none
        raise FrameError(f"{name}: a code that is not known") from None
    _CHECKS[type(frame)](frame)
    return frame


def is_id(text: str) -> bool:
    """Whether the text can be a message's id."""
    return _ID.fullmatch(text) is not None


# --- each kind of frame: how it is read, written and checked

_READERS: Final[Mapping[str, Callable[[Any], Frame]]] = {
    "hello": lambda f: Hello(
        protocol=f.protocol,
        software=f.software,
        federation=f.federation,
        site=f.site,
        compression=tuple(f.compression),
        holding=tuple(f.holding),
        largest=f.largest,
    ),
    "welcome": lambda f: Welcome(
        protocol=f.protocol,
        software=f.software,
        compression=f.compression,
        beat_seconds=f.beat_seconds,
        largest=f.largest,
        clock=f.clock,
    ),
    "offer": lambda f: Offer(run=f.run, plan=f.plan, digest=f.digest),
    "answer": lambda f: Answer(run=f.run, digest=f.digest, code=f.code),
    "begin": lambda f: Begin(id=f.id, header=f.header, size=f.size, digest=f.digest, seconds=f.seconds),
    "chunk": lambda f: Chunk(id=f.id, offset=f.offset, data=f.data, raw=f.raw),
    "receipt": lambda f: Receipt(id=f.id, taken=Taken(f.code)),
    "recall": lambda f: Recall(id=f.id),
    "beat": lambda _: Beat(),
    "farewell": lambda f: Farewell(why=Goodbye(f.code)),
}

_WRITERS: Final[Mapping[type, tuple[str, Callable[[Any], Any]]]] = {
    Hello: ("hello", lambda f: link_pb2.Hello(**vars(f))),
    Welcome: ("welcome", lambda f: link_pb2.Welcome(**vars(f))),
    Offer: ("offer", lambda f: link_pb2.Offer(**vars(f))),
    Answer: ("answer", lambda f: link_pb2.Answer(**vars(f))),
    Begin: ("begin", lambda f: link_pb2.Begin(**vars(f))),
    Chunk: ("chunk", lambda f: link_pb2.Chunk(**vars(f))),
    Receipt: ("receipt", lambda f: link_pb2.Receipt(id=f.id, code=int(f.taken))),
    Recall: ("recall", lambda f: link_pb2.Recall(id=f.id)),
    Beat: ("beat", lambda _: link_pb2.Beat()),
    Farewell: ("farewell", lambda f: link_pb2.Farewell(code=int(f.why))),
}


def _check_hello(frame: Hello) -> None:
    _matches("hello.software", frame.software, _WORD)
    _matches("hello.federation", frame.federation, _NAME)
    _matches("hello.site", frame.site, _NAME)
    _within("hello.compression", len(frame.compression), 0, _MOST_COMPRESSIONS)
    for name in frame.compression:
        _matches("hello.compression", name, _WORD)
    _within("hello.holding", len(frame.holding), 0, _MOST_HOLDING)
    for task in frame.holding:
        _matches("hello.holding", task, _ID)
    _within("hello.largest", frame.largest, 1, LARGEST_MESSAGE)


def _check_welcome(frame: Welcome) -> None:
    _matches("welcome.software", frame.software, _WORD)
    _matches("welcome.compression", frame.compression, _WORD)
    _within("welcome.beat_seconds", frame.beat_seconds, 0.01, 3600.0)
    _within("welcome.largest", frame.largest, 1, LARGEST_MESSAGE)
    _within("welcome.clock", frame.clock, 0.0, 2.0**40)


def _check_offer(frame: Offer) -> None:
    _matches("offer.run", frame.run, _RUN)
    _within("offer.plan", len(frame.plan), 1, LARGEST_PLAN)
    _matches("offer.digest", frame.digest, _ID)


def _check_answer(frame: Answer) -> None:
    _matches("answer.run", frame.run, _RUN)
    _matches("answer.digest", frame.digest, _ID)
    _within("answer.code", frame.code, 0, 1 << 16)


def _check_begin(frame: Begin) -> None:
    _matches("begin.id", frame.id, _ID)
    _within("begin.header", len(frame.header), 0, LARGEST_HEADER)
    _within("begin.size", frame.size, 0, LARGEST_MESSAGE)
    _within("begin.digest", len(frame.digest), 32, 32)
    _within("begin.seconds", frame.seconds, 0.0, _LONGEST_SECONDS)


def _check_chunk(frame: Chunk) -> None:
    _matches("chunk.id", frame.id, _ID)
    _within("chunk.offset", frame.offset, 0, LARGEST_MESSAGE)
    _within("chunk.data", len(frame.data), 1, LARGEST_CHUNK)
    _within("chunk.raw", frame.raw, 0, LARGEST_CHUNK)


_CHECKS: Final[Mapping[type, Callable[[Any], None]]] = {
    Hello: _check_hello,
    Welcome: _check_welcome,
    Offer: _check_offer,
    Answer: _check_answer,
    Begin: _check_begin,
    Chunk: _check_chunk,
    Receipt: lambda frame: _matches("receipt.id", frame.id, _ID),
    Recall: lambda frame: _matches("recall.id", frame.id, _ID),
    Beat: lambda _: None,
    Farewell: lambda _: None,
}

Number = TypeVar("Number", int, float)


def _matches(field: str, text: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(text):
        raise FrameError(f"{field}: is not of its form")


def _within(field: str, value: Number, low: Number, high: Number) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise FrameError(f"{field}: out of bounds")
