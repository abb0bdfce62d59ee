"""A TCP relay between sites and server that can be cut, or stand still, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

_PART: Final = 1 << 16
_RESET = struct.pack("ii", 1, 0)  # close by RST, as a dead middle box would

T = TypeVar("T")


class FaultyWire:
    """Relays every connection to `port` on loopback.

    Args:
        target: port of the server on loopback.

    Attributes:
        port: where sites connect.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._moving = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._do(asyncio.start_server(self._relay, "127.0.0.1", 0, limit=_PART))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self.resume()

    def cut(self) -> int:
        """Break every connection at once; returns how many there were."""
        return self._do(self._cut())

    def stall(self) -> None:
        """Let nothing through until `resume`; connections stay open."""
        self._loop.call_soon_threadsafe(self._moving.clear)

    def resume(self) -> None:
        """Let everything through."""
        self._loop.call_soon_threadsafe(self._moving.set)

    def close(self) -> None:
        """End the relay and every connection."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target, limit=_PART)
        except OSError:  # the server is down: the site is to see that
            _reset(writer)
            return
        ends = {writer, far_writer}
        self._open |= ends
        try:
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
        finally:
            self._open -= ends
            for end in ends:
                _reset(end)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(_PART):
                await self._moving.wait()
                writer.write(part)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _cut(self) -> int:
        broken = list(self._open)
        for writer in broken:
            _reset(writer)
        return len(broken) // 2

    async def _close(self) -> None:
        self._server.close()
        self._moving.set()
        await self._cut()
        await asyncio.sleep(0)  # the relays see their ends closed
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
