"""gRPC's part of the link: a port, a thread with an event loop, and streams of bytes behind checked certificates."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from hashlib import sha256
from typing import Any, Final

import grpc

from security.errors import RunError
from security.frames import LARGEST_FRAME, METHOD, SERVICE

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]

# What gRPC's core checks before a frame is looked at. Messages it would decompress by itself are refused: they may hold
# any number of bytes. Windows are fixed: those that it widens by itself cost many megabytes a stream.
_OPTIONS: Final = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", LARGEST_FRAME),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 20),
    # Who vanished without a word is found out, though nothing is being sent to it.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
)


class Listener:
    """Listens in a thread of its own.

    Args:
        address: HOST:PORT; port 0 takes any.
        credentials: of mutual TLS.
        serve: called on the event loop with each stream's certificate (PEM), how to read (None at the end; a read is
            never cancelled) and how to write; the stream is over when it returns.
        refuse: called so instead, while one certificate has too many streams that are not over.
        most_streams: of one certificate.
    """

    def __init__(
        self,
        address: str,
        credentials: grpc.ServerCredentials,
        *,
        serve: Callable[[bytes, Read, Write], Awaitable[None]],
        refuse: Callable[[bytes, Read, Write], Awaitable[None]],
        most_streams: int,
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._serve = serve
        self._refuse = refuse
        self._most_streams = most_streams
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: Callable[[], None] = lambda: None
        self._over = asyncio.Event()
        self._grace = 0.0
        self._port = 0
        self._unfinished: dict[bytes, int] = {}

    @property
    def is_serving(self) -> bool:
        """Whether it listens."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    @property
    def unfinished(self) -> int:
        """Streams that are not over."""
        return sum(dict(self._unfinished).values())

    def start(self) -> int:
        """Listen. Returns the port.

        Raises:
            RunError: the address can't be listened at.
        """
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), name="veil-link", daemon=True)
        self._thread.start()
        while not ready.wait(0.1) and self._thread.is_alive():
            pass
        if not self._port:
            self._thread.join()
            raise RunError(
                f"{self._address}: can't listen there; see that the address is this machine's, that no other server "
                "runs at that port, and that key and certificate are good"
            )
        return self._port

    def stop(self, begin: Callable[[], None], grace: float) -> None:
        """Stop listening. A second call does nothing.

        Args:
            begin: called on the event loop first: it makes the streams end.
            grace: seconds they have for that.
        """
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._stop, self._grace = begin, grace
        self.call(self._over.set)
        thread.join()

    def call(self, function: Callable[[], object]) -> None:
        """Have something done on the event loop, soon; nothing, if it doesn't run."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(function)

    async def _main(self, ready: threading.Event) -> None:
        """The thread's life."""
        self._loop = asyncio.get_running_loop()
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((_Handler(self._connect),))
        try:
            self._port = server.add_secure_port(self._address, self._credentials)
            await server.start()
        except RuntimeError:
            self._port = 0
        ready.set()
        if self._port:
            await self._over.wait()
        self._stop()
        await server.stop(self._grace)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:  # gRPC's own, about to end; it would write to the terminal if they were cut off
            await asyncio.wait(rest, timeout=1.0)

    async def _connect(self, _: object, context: Any) -> None:
        """One call of gRPC's. It is over when the other end has read the last of it, or is gone."""
        pem = context.auth_context().get("x509_pem_cert", (b"",))[0]
        who = sha256(pem).digest()
        self._unfinished[who] = self._unfinished.get(who, 0) + 1
        context.add_done_callback(lambda _: self._finished(who))

        async def read() -> bytes | None:
            data = await context.read()
            return data if isinstance(data, bytes) else None

        is_crowded = self._unfinished[who] > self._most_streams
        await (self._refuse if is_crowded else self._serve)(pem, read, context.write)

    def _finished(self, who: bytes) -> None:
        self._unfinished[who] -= 1
        if not self._unfinished[who]:
            del self._unfinished[who]


class _Handler(grpc.GenericRpcHandler):
    """The link's one method, with frames as they are on the wire."""

    def __init__(self, connect: Callable[[Any, Any], Awaitable[None]]) -> None:
        self._method: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(connect)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._method if handler_call_details.method == f"/{SERVICE}/{METHOD}" else None
