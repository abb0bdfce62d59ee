"""Messages cut into chunks and put together again, in bounded memory; compression, if both sides know it.

A chunk is compressed by itself, and decompressed into no more bytes than a chunk may hold: a small frame can't make
the receiver allocate much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

from security.frames import LARGEST_CHUNK, Begin, Chunk, FrameError

ZSTD: Final = "zstd"
_LEVEL: Final = 3


def compressions() -> tuple[str, ...]:
    """What this installation can compress with: zstd where the package `zstandard` is installed."""
    return () if _zstandard() is None else (ZSTD,)


def agreed(offered: Iterable[str]) -> str:
    """The compression that both sides know, or "" for none."""
    known = compressions()
    return next((name for name in offered if name in known), "")


def chunks(
    message_id: str, payload: Iterable[bytes], compression: str = "", *, size: int = LARGEST_CHUNK
) -> Iterator[Chunk]:
    """The chunks of a payload.

    Args:
        message_id: of the message.
        payload: the payload in parts of any length, in order.
        compression: what was agreed. A chunk that doesn't get smaller goes as it is.
        size: bytes of the payload in a chunk; fewer where a chunk must not take long on a slow line.
    """
    offset = 0
    for part in _parts(payload, size):
        data, raw = part, 0
        if compression == ZSTD:
            packed = _zstandard().ZstdCompressor(level=_LEVEL).compress(part)
            if len(packed) < len(part):
                data, raw = packed, len(part)
        yield Chunk(id=message_id, offset=offset, data=data, raw=raw)
        offset += len(part)


class Assembly:
    """A message as it comes in: checks order, size and digest; the caller keeps the bytes.

    Args:
        begin: its head.
        compression: what was agreed; "" refuses compressed chunks.

    Attributes:
        begin: its head.
        received: bytes of the payload so far.
    """

    def __init__(self, begin: Begin, compression: str = "") -> None:
        self.begin = begin
        self.received = 0
        self._compression = compression
        self._digest = hashlib.sha256()

    @property
    def is_complete(self) -> bool:
        """Whether all bytes are there."""
        return self.received == self.begin.size

    @property
    def is_sound(self) -> bool:
        """Whether a complete message has the digest that its head promised."""
        return self.is_complete and self._digest.digest() == self.begin.digest

    def add(self, chunk: Chunk) -> bytes:
        """The payload's next bytes.

        Raises:
            FrameError: the chunk is of another message, out of order, past the end or badly compressed.
        """
        if chunk.id != self.begin.id or chunk.offset != self.received:
            raise FrameError("chunk: out of place")
        data = self._unpacked(chunk)
        if self.received + len(data) > self.begin.size:
            raise FrameError("chunk: past the end of its message")
        self.received += len(data)
        self._digest.update(data)
        return data

    def _unpacked(self, chunk: Chunk) -> bytes:
        if chunk.raw == 0:
            return chunk.data
        if self._compression != ZSTD:
            raise FrameError("chunk: compressed, which was not agreed")
        zstandard = _zstandard()
        try:
            # The library makes room for as much as the data says of itself, whatever limit it is given.
            if zstandard.frame_content_size(chunk.data) != chunk.raw:
                raise FrameError("chunk: badly compressed")
            data: bytes = zstandard.ZstdDecompressor(max_window_size=1 << 21).decompress(
                chunk.data, max_output_size=chunk.raw, read_across_frames=False, allow_extra_data=False
            )
        except zstandard.ZstdError:
            raise FrameError("chunk: badly compressed") from None
        if len(data) != chunk.raw:
            raise FrameError("chunk: badly compressed")
        return data


def _parts(payload: Iterable[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in parts of one length."""
    rest = b""
    for part in payload:
        view = memoryview(rest + part if rest else part)
        whole = len(view) - len(view) % size
        for start in range(0, whole, size):
            yield bytes(view[start : start + size])
        rest = bytes(view[whole:])
    if rest:
        yield rest


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        return None
    return zstandard
