"""What is said on the link is one of ten kinds of frame, within bounds, or it is refused, whatever the bytes are."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest

from security import link_pb2
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
    is_id,
)

ID = "5f" * 32
HELLO = Hello(software="0.1.0", federation="clinics", site="north", compression=("zstd",), holding=(ID,), largest=1)
WELCOME = Welcome(software="0.1.0", beat_seconds=10.0, clock=1.7e9, compression="zstd", largest=LARGEST_MESSAGE)
OFFER = Offer(run="0a", plan="name = 'digits'", digest=ID)
ANSWER = Answer(run="0a", digest=ID, code=1012)
BEGIN = Begin(id=ID, header=b"head", size=5, digest=bytes(32), seconds=1.5)
CHUNK = Chunk(id=ID, offset=7, data=b"part", raw=9)
FRAMES: list[Frame] = [
    HELLO,
    WELCOME,
    OFFER,
    ANSWER,
    BEGIN,
    CHUNK,
    Recall(id=ID),
    Beat(),
    *(Receipt(id=ID, taken=taken) for taken in Taken),
    *(Farewell(why=why) for why in Goodbye),
]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: type(frame).__name__)
def test_a_frame_arrives_as_it_was_sent(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@pytest.mark.parametrize(
    "frame",
    [
        Chunk(id=ID, offset=LARGEST_MESSAGE, data=bytes(LARGEST_CHUNK), raw=LARGEST_CHUNK),
        Offer(run="f" * 64, plan="x" * LARGEST_PLAN, digest=ID),
        Begin(id=ID, header=bytes(LARGEST_HEADER), size=LARGEST_MESSAGE, digest=bytes(32), seconds=366 * 86400.0),
        replace(HELLO, holding=(ID,) * 1024, site="a" * 100, federation="b" * 100, software="c" * 64),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_the_largest_frames_are_within_what_is_read(frame: Frame) -> None:
    data = encode(frame)
    assert len(data) <= LARGEST_FRAME
    assert decode(data) == frame


OUT_OF_BOUNDS: list[tuple[Frame, dict[str, Any]]] = [
    *((HELLO, {"site": text}) for text in ("", "-a", "a b", "a\n", "a" * 101, "é", "a/b", "..")),
    *((HELLO, {"federation": text}) for text in ("", ".a", "a" * 101)),
    *((HELLO, {"software": text}) for text in ("a" * 65, "1 0", "1\n")),
    (HELLO, {"compression": ("zstd",) * 9}),
    (HELLO, {"compression": ("z" * 65,)}),
    (HELLO, {"holding": (ID,) * 1025}),
    *((HELLO, {"holding": (text,)}) for text in ("", "5F" * 32, "5f" * 31, ID + "0")),
    *((HELLO, {"largest": size}) for size in (0, LARGEST_MESSAGE + 1)),
    *((WELCOME, {"beat_seconds": beat}) for beat in (0.0, -1.0, 0.009, 3601.0, math.nan, math.inf)),
    *((WELCOME, {"clock": clock}) for clock in (-1.0, math.nan, math.inf, 2.0**41)),
    (OFFER, {"plan": ""}),
    (OFFER, {"plan": "x" * (LARGEST_PLAN + 1)}),
    *((OFFER, {"run": text}) for text in ("", "g", "A", "0" * 65)),
    (OFFER, {"digest": "0" * 63}),
    (ANSWER, {"code": 65537}),
    *((BEGIN, {"digest": bytes(length)}) for length in (0, 31, 33)),
    (BEGIN, {"header": bytes(LARGEST_HEADER + 1)}),
    (BEGIN, {"size": LARGEST_MESSAGE + 1}),
    *((BEGIN, {"seconds": seconds}) for seconds in (-1.0, math.nan, math.inf, 367 * 86400.0)),
    *((BEGIN, {"id": text}) for text in ("", "x" * 64, ID.upper())),
    (CHUNK, {"data": b""}),
    (CHUNK, {"data": bytes(LARGEST_CHUNK + 1)}),
    (CHUNK, {"raw": LARGEST_CHUNK + 1}),
    (CHUNK, {"offset": LARGEST_MESSAGE + 1}),
]


@pytest.mark.parametrize(("frame", "changes"), OUT_OF_BOUNDS, ids=lambda value: str(value)[:40])
def test_a_field_out_of_bounds_is_neither_sent_nor_taken(frame: Frame, changes: dict[str, Any]) -> None:
    with pytest.raises(FrameError) as sent:
        encode(replace(frame, **changes))
    name = type(frame).__name__.lower()
    raw = link_pb2.Frame(**{name: getattr(link_pb2, type(frame).__name__)(**{**vars(frame), **changes})})
    with pytest.raises(FrameError) as taken:
        decode(raw.SerializeToString())
    for error in (sent, taken):
        assert str(error.value).startswith(name)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        bytes(LARGEST_FRAME + 1),
        link_pb2.Frame(receipt=link_pb2.Receipt(id=ID, code=5)).SerializeToString(),
        link_pb2.Frame(farewell=link_pb2.Farewell(code=99)).SerializeToString(),
        b"\x7a\x00",  # field 15, which is none
        b"\x0a\x04\x12\x02\xff\xfe",  # a Hello whose software is no text
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        decode(data)


def test_an_error_never_repeats_what_was_sent() -> None:
    secret = "s3cret value"
    raw = link_pb2.Frame(hello=link_pb2.Hello(protocol=1, software=secret, federation=secret, site=secret))
    with pytest.raises(FrameError) as error:
        decode(raw.SerializeToString())
    assert secret not in str(error.value)
    assert error.value.__suppress_context__ or error.value.__context__ is None


def test_mutated_frames_are_frames_or_refused() -> None:
    """5000 frames, each with a few bytes changed, cut, doubled or joined with another's."""
    rng = random.Random(1)
    good = [encode(frame) for frame in FRAMES]
    taken = 0
    for _ in range(5000):
        taken += survives(mutated(rng, good))
    assert 0 < taken < 5000  # some were harmless, some were not: both ways were tried


def test_random_bytes_are_frames_or_refused() -> None:
    rng = random.Random(2)
    for _ in range(5000):
        survives(rng.randbytes(rng.randrange(200)))


def survives(data: bytes) -> bool:
    """Whether it was taken for a frame; then it is one that could be sent. Anything but FrameError fails the test."""
    try:
        frame = decode(data)
    except FrameError:
        return False
    assert decode(encode(frame)) == frame
    return True


def mutated(rng: random.Random, good: list[bytes]) -> bytes:
    data = bytearray(rng.choice(good))
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0 if place < len(data):
                data[place] = rng.randrange(256)
            case 1:
                del data[place : place + rng.randrange(8)]
            case 2:
                data[place:place] = rng.randbytes(rng.randrange(1, 8))
            case 3:
                data[place:place] = data[: rng.randrange(len(data) + 1)]
            case _:
                data += rng.choice(good)
    return bytes(data)


def test_goodbyes_that_calling_again_cannot_help_are_final() -> None:
    assert {why.reason for why in Goodbye if why.is_final} == {
        "protocol",
        "unknown-site",
        "other-site",
        "other-federation",
        "revoked",
    }  # not "expired": a clock is set right again, a renewed certificate is taken up by the next call


def test_an_id_is_a_digest_in_hexadecimal() -> None:
    assert is_id(ID)
    assert not any(map(is_id, ("", ID[:-1], ID.upper(), ID + "\n")))
