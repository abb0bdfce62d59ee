"""A site for tests: speaks frames over real mutual TLS, and misbehaves as it is told to.

`LinkClient` says and hears single frames. `Site` is an honest one on top of it: it accepts offers, and answers tasks.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from security.certificates import server_name
from security.chunks import Assembly, chunks
from security.frames import (
    ACCEPTED,
    LARGEST_FRAME,
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
    Recall,
    Receipt,
    Welcome,
    decode,
    encode,
)
from tests.server.link_certificates import FEDERATION, Credentials, TestAuthority

SECONDS = 30.0  # patience of any test, never waited for when all is well

Kind = TypeVar("Kind", bound=Frame)
Work = Callable[[Begin, bytes], bytes | None]


class ClosedError(Exception):
    """The stream is over; holds gRPC's status."""


class LinkClient:
    """One stream.

    Args:
        port: of the server on this machine.
        authority: whose certificate is trusted.
        credentials: the site's.
        is_reading: whether to read what comes, all the time; else only `read_one` does.
    """

    def __init__(
        self, port: int, authority: TestAuthority, credentials: Credentials, *, is_reading: bool = True, **call: Any
    ) -> None:
        name = server_name(authority.federation)
        self.channel = grpc.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(authority.certificate, credentials.key, credentials.certificate),
            options=[
                ("grpc.ssl_target_name_override", name),
                ("grpc.default_authority", name),
                ("grpc.max_receive_message_length", LARGEST_FRAME),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self.call = self.channel.stream_stream(f"/{SERVICE}/{METHOD}")(iter(self._out.get, None), **call)
        self.welcome: Welcome | None = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        if is_reading:
            self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, as a machine that dies would."""
        self.call.cancel()
        self._out.put(None)
        self.channel.close()

    # --- saying

    def send(self, *frames: Frame) -> None:
        """Say something."""
        for frame in frames:
            self.send_bytes(encode(frame))

    def send_bytes(self, data: bytes) -> None:
        """Say something that may be no frame."""
        self._out.put(data)

    def half_close(self) -> None:
        """Say that nothing more will be said."""
        self._out.put(None)

    def hello(self, site: str, **changes: Any) -> Welcome:
        """Come in."""
        self.send(hello(site, **changes))
        self.welcome = self.receive(Welcome)
        return self.welcome

    def accept(self, code: int = ACCEPTED) -> Offer:
        """Answer the offer."""
        offer = self.receive(Offer)
        self.send(Answer(run=offer.run, digest=offer.digest, code=code))
        return offer

    def send_message(self, task: str, payload: bytes, compression: str = "", **changes: Any) -> None:
        """Say a whole message."""
        self.send(begin(task, payload, **changes))
        self.send(*chunks(task, [payload], compression))

    # --- hearing

    def next_frame(self, timeout: float = SECONDS) -> Frame:
        """The next frame, whatever it is.

        Raises:
            ClosedError: there is none: the stream is over.
        """
        frame = self._in.get(timeout=timeout)
        if frame is None:
            self._in.put(None)
            raise ClosedError(self.call.code())
        return frame

    def read_one(self) -> Frame:
        """The next frame, for a client that doesn't read all the time."""
        return decode(next(self.call))

    def receive(self, kind: type[Kind], timeout: float = SECONDS) -> Kind:
        """The next frame but for beats, which must be of this kind."""
        frame = self.next_frame(timeout)
        while isinstance(frame, Beat):
            frame = self.next_frame(timeout)
        assert isinstance(frame, kind), frame
        return frame

    def receive_message(self) -> tuple[Begin, bytes]:
        """The next whole message."""
        head = self.receive(Begin)
        assembly = Assembly(head, self.welcome.compression if self.welcome else "")
        parts = []
        while not assembly.is_complete:
            parts.append(assembly.add(self.receive(Chunk)))
        assert assembly.is_sound
        return head, b"".join(parts)

    def farewell(self) -> Goodbye:
        """Why the stream ended; what comes before that is dropped."""
        while True:
            frame = self.next_frame()
            if isinstance(frame, Farewell):
                return frame.why

    def until_closed(self) -> grpc.StatusCode:
        """How gRPC ended the stream."""
        try:
            while True:
                self.next_frame()
        except ClosedError as closed:
            return closed.args[0]

    def _read(self) -> None:
        try:
            for data in self.call:
                self._in.put(decode(data))
        except grpc.RpcError:
            pass
        self._in.put(None)


class Site:
    """An honest site: accepts every offer, and answers each task with what `work` makes of it.

    Args:
        name: of the site.
        work: makes the reply's payload of a task's head and payload; None to give no reply.
        connection: as for `LinkClient`.
    """

    def __init__(self, name: str, work: Work, *connection: Any, holding: tuple[str, ...] = ()) -> None:
        self.client = LinkClient(*connection)
        self.name = name
        self.tasks: list[str] = []
        self.recalled: list[str] = []
        self.receipts: dict[str, str] = {}
        self._work = work
        self.client.send(hello(name, holding=holding))
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up."""
        self.client.close()
        self._thread.join(SECONDS)

    def _live(self) -> None:
        assembly: Assembly | None = None
        parts: list[bytes] = []
        for frame in self._frames():
            match frame:
                case Offer():
                    self.client.send(Answer(run=frame.run, digest=frame.digest, code=ACCEPTED))
                case Begin():
                    assembly, parts = Assembly(frame), []
                case Chunk():
                    assert assembly is not None
                    parts.append(assembly.add(frame))
                case Receipt():
                    self.receipts[frame.id] = frame.taken.name
                case Recall():
                    self.recalled.append(frame.id)
            if assembly is not None and assembly.is_complete:
                assert assembly.is_sound
                self.tasks.append(assembly.begin.id)
                reply = self._work(assembly.begin, b"".join(parts))
                if reply is not None:
                    self.client.send_message(assembly.begin.id, reply)
                assembly = None

    def _frames(self) -> Iterator[Frame]:
        try:
            while True:
                yield self.client.next_frame(timeout=10 * SECONDS)
        except ClosedError:
            return


def hello(site: str, **changes: Any) -> Hello:
    """A good Hello."""
    return Hello(**{"software": "0.1.0", "federation": FEDERATION, "site": site, **changes})


def begin(task: str, payload: bytes, **changes: Any) -> Begin:
    """The head of a message."""
    fields = {"id": task, "header": b"", "size": len(payload), "digest": hashlib.sha256(payload).digest(), **changes}
    return Begin(**fields)


def task_id(number: int) -> str:
    """An id like those of messages."""
    return hashlib.sha256(str(number).encode()).hexdigest()
