"""A message arrives as it was sent, or its receiver knows that it didn't; small frames can't make large ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable

import pytest
import zstandard

from security.chunks import ZSTD, Assembly, agreed, chunks, compressions
from security.frames import LARGEST_CHUNK, Begin, Chunk, FrameError, decode, encode

ID, OTHER = "5f" * 32, "a0" * 32
SIZES = [0, 1, LARGEST_CHUNK - 1, LARGEST_CHUNK, LARGEST_CHUNK + 1, 3 * LARGEST_CHUNK, 3 * LARGEST_CHUNK + 17]


def begin(payload: bytes, **changes: object) -> Begin:
    fields = {"id": ID, "header": b"", "size": len(payload), "digest": hashlib.sha256(payload).digest(), **changes}
    return Begin(**fields)  # type: ignore[arg-type]


def cut(payload: bytes, rng: random.Random) -> Iterable[bytes]:
    place = 0
    while place < len(payload):
        size = rng.randrange(1, 2 * LARGEST_CHUNK)
        yield payload[place : place + size]
        place += size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("compression", ["", ZSTD])
@pytest.mark.parametrize("is_dull", [True, False])
def test_a_message_arrives_whole(size: int, compression: str, is_dull: bool) -> None:
    rng = random.Random(size)
    payload = bytes(size) if is_dull else rng.randbytes(size)
    sent = list(chunks(ID, cut(payload, rng), compression))
    assert len(sent) == -(-size // LARGEST_CHUNK)
    assembly = Assembly(begin(payload), compression)
    got = b"".join(assembly.add(decode(encode(chunk))) for chunk in sent)  # type: ignore[arg-type]
    assert got == payload
    assert assembly.is_complete
    assert assembly.is_sound
    if compression and is_dull and size > 1:
        assert sum(len(chunk.data) for chunk in sent) < size / 100
    if not is_dull:
        assert all(chunk.raw == 0 for chunk in sent)  # what doesn't get smaller goes as it is


def test_a_payload_is_read_only_as_far_as_its_chunks_are_taken() -> None:
    taken = []

    def parts() -> Iterable[bytes]:
        for number in range(100):
            taken.append(number)
            yield bytes(LARGEST_CHUNK)

    stream = chunks(ID, parts())
    next(stream)
    assert len(taken) == 1
    next(stream)
    assert len(taken) == 2


def test_a_changed_message_is_complete_but_not_sound() -> None:
    payload = random.Random(1).randbytes(1000)
    assembly = Assembly(begin(payload))
    assembly.add(Chunk(id=ID, offset=0, data=payload[:-1] + bytes([payload[-1] ^ 1])))
    assert assembly.is_complete
    assert not assembly.is_sound


def test_half_a_message_is_neither() -> None:
    assembly = Assembly(begin(b"four"))
    assembly.add(Chunk(id=ID, offset=0, data=b"fo"))
    assert not assembly.is_complete
    assert not assembly.is_sound


@pytest.mark.parametrize(
    "wrong",
    [
        Chunk(id=OTHER, offset=2, data=b"ur"),
        Chunk(id=ID, offset=0, data=b"fo"),
        Chunk(id=ID, offset=3, data=b"r"),
        Chunk(id=ID, offset=2, data=b"url"),
        Chunk(id=ID, offset=2, data=zstandard.compress(b"ur"), raw=2),
    ],
    ids=["other message", "again", "too far on", "past the end", "compressed, which was not agreed"],
)
def test_a_chunk_out_of_place_is_refused(wrong: Chunk) -> None:
    assembly = Assembly(begin(b"four"))
    assembly.add(Chunk(id=ID, offset=0, data=b"fo"))
    with pytest.raises(FrameError):
        assembly.add(wrong)
    assert assembly.received == 2


def bomb(size: int) -> bytes:
    """A small frame that holds this many zeros."""
    return zstandard.ZstdCompressor(level=19).compress(bytes(size))


def lying(claimed: int, size: int) -> bytes:
    """A frame that says it holds `claimed` bytes, and holds `size`."""
    honest = zstandard.ZstdCompressor(level=3, write_checksum=False).compress(bytes(size))
    claim = zstandard.ZstdCompressor(level=3, write_checksum=False).compress(bytes(claimed))
    head = zstandard.frame_header_size(claim)
    return claim[:head] + honest[zstandard.frame_header_size(honest) :]


def unsized(data: bytes) -> bytes:
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("data", "raw"),
    [
        (bomb(LARGEST_CHUNK + 1), LARGEST_CHUNK),
        (bomb(1 << 28), LARGEST_CHUNK),
        (bomb(1000), 999),
        (bomb(1000), 1001),
        (bomb(500) + bomb(500), 500),
        (bomb(500) + b"more", 500),
        (bomb(500)[:-1], 500),
        (lying(300, 400_000), 300),
        (unsized(bytes(500)), 500),
        (b"no frame of zstd's", 500),
        (b"\x28\xb5\x2f\xfd", 500),
        (random.Random(3).randbytes(500), 500),
    ],
    ids=["one more", "bomb", "less", "more", "two", "rest", "cut", "lie", "unsized", "text", "magic", "noise"],
)
def test_a_badly_compressed_chunk_is_refused(data: bytes, raw: int) -> None:
    assembly = Assembly(begin(bytes(1 << 20)), ZSTD)
    with pytest.raises(FrameError, match="badly compressed"):
        assembly.add(Chunk(id=ID, offset=0, data=data, raw=raw))
    assert assembly.received == 0


def test_mutated_compressed_chunks_never_crash_the_receiver() -> None:
    rng = random.Random(4)
    honest = [zstandard.compress(rng.randbytes(50) * 40) for _ in range(20)]
    head, refused = begin(bytes(1 << 20)), 0
    for _ in range(3000):
        data = bytearray(rng.choice(honest))
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            got = Assembly(head, ZSTD).add(Chunk(id=ID, offset=0, data=bytes(data), raw=2000))
        except FrameError:
            refused += 1
        else:
            assert len(got) == 2000
    assert refused > 0


def test_both_sides_must_know_a_compression() -> None:
    assert ZSTD in compressions()
    assert agreed(["lz9", ZSTD]) == ZSTD
    assert agreed(["lz9"]) == ""
    assert agreed([]) == ""
