"""Calling the server: the site always calls, so that nobody can call it; patiently, for days if need be.

The stream's own beats find out that the other side is gone (`client/session.py`), so gRPC's keepalive pings, which
many servers and proxies punish, are not used.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from security.frames import LARGEST_FRAME, METHOD, SERVICE

if TYPE_CHECKING:
    import grpc

_FIRST_DELAY: Final = 1.0  # seconds
_LONGEST_DELAY: Final = 300.0
_CLOSE_SECONDS: Final = 5.0


class Wire(Protocol):
    """One stream: whole frames as bytes, in both directions."""

    async def write(self, data: bytes) -> None:
        """Send a frame; returns once there is room for the next. Raises `CutError`."""

    async def read(self) -> bytes | None:
        """The next frame; None once the other side has ended the stream in good order. Raises `CutError`."""

    async def end(self) -> None:
        """Say that no more comes from here."""

    async def close(self) -> None:
        """Give the connection back, whatever state it is in."""


class CutError(Exception):
    """The stream is gone; its text holds nothing that the other side said."""


Dial = Callable[[], Awaitable[Wire]]


class Backoff:
    """How long to wait before the next call: exponential with full jitter, so that many sites don't call at once.

    Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015.

    Args:
        first: longest first delay, seconds.
        longest: that a delay may ever be, seconds.
        draw: gives a number from 0 to the one it is given.
    """

    def __init__(
        self,
        *,
        first: float = _FIRST_DELAY,
        longest: float = _LONGEST_DELAY,
        draw: Callable[[float], float] = lambda most: random.SystemRandom().uniform(0.0, most),
    ) -> None:
        self._first = first
        self._longest = longest
        self._draw = draw
        self._failures = 0

    def delay(self) -> float:
        """Seconds until the next call."""
        most = min(self._longest, self._first * 2.0 ** min(self._failures, 60))
        self._failures += 1
        return self._draw(most)

    def slow_down(self) -> None:
        """Wait as long as ever from now on: there is no hurry."""
        self._failures = 60

    def reset(self) -> None:
        """The last connection was good: begin anew."""
        self._failures = 0


def forget_proxies() -> None:
    """Let no exceptions hold for the proxy that `site.toml` names: gRPC would take them from the environment."""
    for name in ("no_grpc_proxy", "no_proxy"):
        os.environ.pop(name, None)


class GrpcDialer:
    """Opens streams over gRPC.

    Args:
        address: HOST:PORT of the server.
        credentials: makes the credentials; asked before every call, so that a renewed certificate is used.
        options: what the channel needs beside (`security.credentials.channel_options`).
        proxy: http://HOST:PORT of a proxy, or "" for none; proxies that the environment names are not used.
    """

    def __init__(
        self,
        address: str,
        credentials: Callable[[], grpc.ChannelCredentials],
        *,
        options: Sequence[tuple[str, Any]] = (),
        proxy: str = "",
    ) -> None:
        self._target = f"dns:///{address}"
        self._credentials = credentials
        way: tuple[str, Any] = ("grpc.http_proxy", proxy) if proxy else ("grpc.enable_http_proxy", 0)
        self._options = [
            *options,
            way,
            ("grpc.max_receive_message_length", LARGEST_FRAME),
            ("grpc.max_send_message_length", LARGEST_FRAME),
            ("grpc.use_local_subchannel_pool", 1),  # a new call begins anew: gRPC's own delays are not ours
            ("grpc.enable_retries", 0),
        ]

    async def __call__(self) -> Wire:
        """Begin a stream; whether anybody is there shows with its first frame.

        Raises:
            UsageError: the site's own key or certificate won't do.
        """
        import grpc

        channel = grpc.aio.secure_channel(self._target, await asyncio.to_thread(self._credentials), self._options)
        return _GrpcWire(channel, channel.stream_stream(f"/{SERVICE}/{METHOD}")())


class _GrpcWire:
    """One frame is always read ahead: a write into a stream that has ended would lose what wasn't read before."""

    def __init__(self, channel: grpc.aio.Channel, call: Any) -> None:
        self._channel = channel
        self._call = call
        self._ahead = self._read_ahead()

    async def write(self, data: bytes) -> None:
        with _cut():
            await self._call.write(data)

    async def read(self) -> bytes | None:
        import grpc

        with _cut():
            found = await asyncio.shield(self._ahead)
        if found is grpc.aio.EOF:
            return None
        self._ahead = self._read_ahead()
        return bytes(found)

    def _read_ahead(self) -> asyncio.Future[Any]:
        found: asyncio.Future[Any] = asyncio.ensure_future(self._call.read())
        found.add_done_callback(lambda done: None if done.cancelled() else done.exception())  # nobody may ask for it
        return found

    async def end(self) -> None:
        with _cut():
            await self._call.done_writing()

    async def close(self) -> None:
        self._ahead.cancel()
        self._call.cancel()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._channel.close(), _CLOSE_SECONDS)


@contextmanager
def _cut() -> Iterator[None]:
    """Turns gRPC's errors into `CutError`."""
    import grpc

    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise CutError(error.code().name.lower()) from None  # its details are the other side's text
    except asyncio.InvalidStateError:  # gRPC's word for a call that has ended
        raise CutError("ended") from None
