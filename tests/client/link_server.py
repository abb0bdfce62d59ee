"""A server on frames, for tests of a site's client: it says what a test has it say, and nothing by itself."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, TypeVar

import grpc

from security.chunks import Assembly, chunks
from security.frames import (
    METHOD,
    SERVICE,
    Answer,
    Beat,
    Begin,
    Chunk,
    Farewell,
    Frame,
    Goodbye,
    Hello,
    Offer,
    Receipt,
    Taken,
    Welcome,
    decode,
    encode,
)

PATIENCE = 20.0  # seconds; a test that needs them all has failed

Kind = TypeVar("Kind", bound=Frame)


class Over(Exception):
    """The site has ended the stream, or it was cut."""


class Stream:
    """A stream of a site's. `beats` are the times at which it gave one."""

    def __init__(self, context: grpc.ServicerContext, beat_seconds: float) -> None:
        self.beats: list[float] = []
        self.hello: Hello
        self.hangs_up = True
        """Whether to end the stream when the site does."""
        self._context = context
        self._beat_seconds = beat_seconds
        self._out: queue.Queue[bytes | None] = queue.Queue()
        self._in: queue.Queue[Frame | None] = queue.Queue()

    # --- what the test has the server say

    def say(self, *frames: Frame) -> None:
        for frame in frames:
            self._out.put(encode(frame))

    def say_bytes(self, data: bytes) -> None:
        self._out.put(data)

    def welcome(self, **changes: Any) -> Hello:
        """Let the site in."""
        self.hello = self.hear(Hello)
        usual = {"software": "0", "beat_seconds": self._beat_seconds, "clock": time.time()}
        self.say(Welcome(**{**usual, **changes}))
        return self.hello

    def offer(self, offer: Offer) -> Answer:
        """Offer a plan; the answer."""
        self.say(offer)
        return self.hear(Answer)

    def send(self, task: str, header: bytes, payload: bytes, *, seconds: float = 0.0, compression: str = "") -> None:
        """Send a task, whole."""
        self.say(begin_of(task, header, payload, seconds=seconds), *chunks(task, [payload], compression))

    def end(self, why: Goodbye | None = None) -> None:
        """End the stream, with a farewell or without."""
        if why is not None:
            self.say(Farewell(why=why))
        self._out.put(None)

    def cut(self) -> None:
        """As if the line broke."""
        self._context.cancel()

    # --- what the site says

    def hear(self, kind: type[Kind], *, timeout: float = PATIENCE) -> Kind:
        """The next frame, which must be of a kind; beats don't count.

        Raises:
            Over: the stream has ended.
            TimeoutError: there was none.
        """
        frame = self._next(timeout)
        assert isinstance(frame, kind), f"a {type(frame).__name__} was heard, not a {kind.__name__}"
        return frame

    def reply(self, *, taken: Taken | None = Taken.STORED, compression: str = "") -> tuple[Begin, bytes]:
        """The next reply, whole and sound; it is acknowledged unless `taken` is None."""
        begin = self.hear(Begin)
        assembly, payload = Assembly(begin, compression), b""
        while not assembly.is_complete:
            payload += assembly.add(self.hear(Chunk))
        assert assembly.is_sound
        if taken is not None:
            self.say(Receipt(id=begin.id, taken=taken))
        return begin, payload

    def is_quiet(self, seconds: float) -> bool:
        """Whether nothing but beats comes for so long."""
        try:
            self._next(seconds)
        except TimeoutError:
            return True
        return False

    def wait_until_over(self) -> None:
        """The site hangs up; what it says before is thrown away."""
        try:
            while True:
                self._next(PATIENCE)
        except Over:
            return

    def _next(self, timeout: float) -> Frame:
        try:
            frame = self._in.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("the site said nothing") from None
        if frame is None:
            self._in.put(None)
            raise Over
        return frame

    def read(self, requests: Iterator[bytes]) -> None:
        try:
            for data in requests:
                frame = decode(data)
                if isinstance(frame, Beat):
                    self.beats.append(time.monotonic())
                else:
                    self._in.put(frame)
        except Exception:  # gRPC's many ways to say that the site is gone
            pass
        self._in.put(None)
        if self.hangs_up:
            self._out.put(None)

    def written(self) -> Iterator[bytes]:
        while (data := self._out.get()) is not None:
            yield data


class LinkServer:
    """Listens on loopback. `with LinkServer() as server: stream = server.stream()`."""

    def __init__(
        self, credentials: grpc.ServerCredentials | None = None, *, port: int = 0, beat_seconds: float = 30.0
    ) -> None:
        self._streams: queue.Queue[Stream] = queue.Queue()
        self._all: list[Stream] = []
        self._beat_seconds = beat_seconds
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", credentials or grpc.local_server_credentials())
        self.address = f"127.0.0.1:{self.port}"

    def __enter__(self) -> LinkServer:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for stream in self._all:
            stream.end()
        self._server.stop(None).wait()

    def stream(self, *, timeout: float = PATIENCE) -> Stream:
        """The next stream that a site opens."""
        try:
            return self._streams.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("nobody called") from None

    def welcomed(self, **changes: Any) -> Stream:
        """The next stream, let in."""
        stream = self.stream()
        stream.welcome(**changes)
        return stream

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = Stream(context, self._beat_seconds)
        self._all.append(stream)
        threading.Thread(target=stream.read, args=(requests,), daemon=True).start()
        context.add_callback(stream.end)
        self._streams.put(stream)
        yield from stream.written()


def begin_of(task: str, header: bytes, payload: bytes, *, seconds: float = 0.0) -> Begin:
    return Begin(id=task, header=header, size=len(payload), digest=sha256(payload).digest(), seconds=seconds)


def eventually(condition: Callable[[], bool], *, timeout: float = PATIENCE) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        threading.Event().wait(0.01)
