"""One stream with the server, from Hello to its end: what is said and heard, in what order.

Who says something is always `_write`, who hears something always `_read`; both stop when the stream does. Nothing here
outlives the stream: tasks, replies and offers belong to the desk (`client/agent.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from client.cancelling import cancelled
from client.dialing import CutError, Wire
from client.outbox import Outbox, Reply
from security.chunks import Assembly, chunks
from security.frames import (
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

_WELCOME_SECONDS: Final = 30.0  # a slow line, a handshake, a name to be looked up
_SILENT_BEATS: Final = 3
_LAST_FRAMES_SECONDS: Final = 2.0  # for what the server said before it hung up
_MOST_DAMAGED: Final = 3
_CHUNK: Final = 1 << 17  # on a slow line a chunk must not take as long as the silence that is allowed


class Taking(Enum):
    """What becomes of a task that the server begins to send."""

    TAKE = "take"
    SKIP = "skip"
    """It is in hand, or will not be looked at."""
    ANSWERED = "answered"
    """Its reply is stored."""


class Desk(Protocol):
    """Whom the session brings what it hears."""

    def welcomed(self, welcome: Welcome) -> None:
        """The server lets this site in."""

    def offered(self, offer: Offer) -> None:
        """A plan is about to be played."""

    async def begins(self, begin: Begin) -> Taking:
        """Whether a task is wanted."""

    def received(self, begin: Begin, payload: bytearray) -> None:
        """A task is here, whole and sound."""

    async def damaged(self, begin: Begin) -> None:
        """A task came with another digest than its head promised."""

    def recalled(self, task_id: str) -> None:
        """A task's time is over."""

    async def may_leave(self, reply: Reply) -> bool:
        """Whether a stored reply may be sent now; asked before its first frame."""

    async def delivered(self, reply_id: str, taken: Taken) -> None:
        """The server will not need a reply any more."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How a stream ended.

    Attributes:
        welcomed: whether the server had let this site in.
        why: "farewell", "ended" in good order without one, "silent", "malformed", or how it was cut.
        goodbye: of a farewell.
        text: what to say of it, where it is known.
    """

    welcomed: bool
    why: str
    goodbye: Goodbye | None = None
    text: str | None = None


class Session:
    """A stream with the server.

    Args:
        wire: just opened.
        desk: is told what is heard.
        outbox: where replies are read from.
        hello: the first word.
    """

    def __init__(self, wire: Wire, desk: Desk, outbox: Outbox, hello: Hello) -> None:
        self._wire = wire
        self._desk = desk
        self._outbox = outbox
        self._hello = hello
        self._welcome: Welcome | None = None
        # What goes out: frames first, then replies, one at a time; each of these until its receipt.
        self._wake = asyncio.Event()
        self._frames: deque[Frame] = deque()
        self._replies: deque[str] = deque()
        self._sending: tuple[str, Iterator[Chunk]] | None = None
        self._sent: set[str] = set()
        self._damaged: dict[str, int] = {}
        self._finishing = False
        # What comes in.
        self._assembly: Assembly | None = None
        self._payload = bytearray()
        self._skipped: str | None = None

    @property
    def is_welcome(self) -> bool:
        """Whether the server has let this site in."""
        return self._welcome is not None

    # --- asked by the desk

    def answer(self, answer: Answer) -> None:
        """Answer an offer."""
        self._frames.append(answer)
        self._wake.set()

    def send(self, reply_id: str) -> None:
        """Send a stored reply, unless it is on its way, or may not leave."""
        sending = self._sending is not None and self._sending[0] == reply_id
        if not sending and reply_id not in self._sent and reply_id not in self._replies:
            self._replies.append(reply_id)
            self._wake.set()

    def finish(self) -> None:
        """Send what is there, wait until the server has it, and hang up."""
        self._finishing = True
        self._wake.set()

    async def run(self) -> End:
        """Talk until the stream ends; its end is never an error."""
        try:
            refused = await asyncio.wait_for(self._begin(), _WELCOME_SECONDS)
        except TimeoutError:
            return self._end("silent")
        except CutError as cut:
            return self._end(str(cut))
        except FrameError:
            return self._end("malformed")
        if refused is not None:
            return refused
        reader, writer = asyncio.create_task(self._read()), asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():  # it may still hear why
                await asyncio.wait({reader}, timeout=_LAST_FRAMES_SECONDS)
            return self._outcome(reader if reader.done() else writer)
        finally:
            await cancelled(reader, writer)

    def _outcome(self, task: asyncio.Task[End]) -> End:
        try:
            return task.result()
        except TimeoutError:
            return self._end("silent")
        except CutError as cut:
            return self._end(str(cut))
        except FrameError:
            return self._end("malformed")
        except asyncio.CancelledError:  # gRPC's word for a call that was given up, not ours
            return self._end("cancelled")

    def _end(self, why: str, goodbye: Goodbye | None = None) -> End:
        return End(welcomed=self.is_welcome, why=why, goodbye=goodbye)

    async def _begin(self) -> End | None:
        with suppress(CutError):  # who ends the stream at once may have said why
            await self._wire.write(encode(self._hello))
        data = await self._wire.read()
        if data is None:
            return self._end("ended")
        match decode(data):
            case Farewell(why=why):
                return self._end("farewell", why)
            case Welcome() as welcome:
                if welcome.protocol != self._hello.protocol:
                    return self._end("farewell", Goodbye.PROTOCOL)
                if welcome.compression not in ("", *self._hello.compression):
                    raise FrameError("welcome: a compression that was not offered")
                self._welcome = welcome
            case _:
                raise FrameError("out of place")
        self._desk.welcomed(self._welcome)
        return None

    # --- what comes in

    async def _read(self) -> End:
        assert self._welcome is not None
        patience = _SILENT_BEATS * self._welcome.beat_seconds
        while True:
            data = await asyncio.wait_for(self._wire.read(), patience)
            if data is None:
                return self._end("ended")
            frame = decode(data)
            if isinstance(frame, Farewell):
                return self._end("farewell", frame.why)
            await self._heard(frame)

    async def _heard(self, frame: Frame) -> None:
        match frame:
            case Beat():
                pass
            case Offer():
                self._desk.offered(frame)
            case Begin():
                await self._task_begins(frame)
            case Chunk():
                await self._task_goes_on(frame)
            case Recall(id=task_id):
                if self._assembly is not None and self._assembly.begin.id == task_id:
                    self._skip(task_id)
                self._desk.recalled(task_id)
            case Receipt():
                await self._receipt(frame)
            case _:
                raise FrameError("out of place")

    async def _task_begins(self, begin: Begin) -> None:
        self._skip(begin.id)  # the one before, if it was not whole: the server has stopped sending it
        taking = await self._desk.begins(begin)
        if taking is Taking.ANSWERED:
            self.send(begin.id)
        if taking is Taking.TAKE:
            assert self._welcome is not None
            self._assembly, self._skipped = Assembly(begin, self._welcome.compression), None
            await self._task_may_be_whole()

    async def _task_goes_on(self, chunk: Chunk) -> None:
        if self._assembly is not None:
            self._payload += self._assembly.add(chunk)
            await self._task_may_be_whole()
        elif chunk.id != self._skipped:
            raise FrameError("chunk: of no message")

    async def _task_may_be_whole(self) -> None:
        assembly = self._assembly
        if assembly is None or not assembly.is_complete:
            return
        payload, self._payload, self._assembly = self._payload, bytearray(), None
        if assembly.is_sound:
            self._desk.received(assembly.begin, payload)
        else:
            await self._desk.damaged(assembly.begin)

    def _skip(self, task_id: str) -> None:
        self._assembly, self._payload, self._skipped = None, bytearray(), task_id

    async def _receipt(self, receipt: Receipt) -> None:
        reply = receipt.id
        if self._sending is not None and self._sending[0] == reply:
            self._sending = None  # no more of it
        with suppress(ValueError):
            self._replies.remove(reply)
        self._sent.discard(reply)
        if receipt.taken is Taken.DAMAGED:
            self._damaged[reply] = self._damaged.get(reply, 0) + 1
            if self._damaged[reply] < _MOST_DAMAGED:
                self.send(reply)
                return
        await self._desk.delivered(reply, receipt.taken)
        self._wake.set()

    # --- what goes out

    async def _write(self) -> End:
        assert self._welcome is not None
        while True:
            self._wake.clear()  # before looking: what is brought meanwhile wakes at once
            frame = self._frames.popleft() if self._frames else await self._next_part()
            if frame is None:
                if self._finishing and not self._sent and not self._replies and not self._frames:
                    await self._wire.end()
                    return self._end("ended")
                try:
                    await asyncio.wait_for(self._wake.wait(), self._welcome.beat_seconds)
                    continue
                except TimeoutError:
                    frame = Beat()
            await self._wire.write(encode(frame))

    async def _next_part(self) -> Frame | None:
        """The next frame of the replies that are to be sent, if there is one."""
        assert self._welcome is not None
        while True:
            if self._sending is None:
                if not self._replies:
                    return None
                reply_id = self._replies.popleft()
                # Never compressed: how well values compress would show in the lengths of what is encrypted.
                parts = chunks(reply_id, self._outbox.payload(reply_id), size=_CHUNK)
                self._sending = reply_id, parts
                head = await asyncio.to_thread(self._outbox.reply, reply_id)
                may_leave = head is not None and await self._desk.may_leave(head)
                if head is None or not may_leave or self._sending is None:  # or its receipt came meanwhile
                    self._sending = None
                    continue
                if self._frames:  # such as the very answer that lets it leave
                    self._replies.appendleft(reply_id)
                    self._sending = None
                    return self._frames.popleft()
                return Begin(id=reply_id, header=head.header, size=head.size, digest=head.digest)
            reply_id, parts = self._sending
            chunk = await asyncio.to_thread(next, parts, None)
            if self._sending is None:  # its receipt came while the disk was read
                continue
            if chunk is not None:
                return chunk
            self._sending = None
            self._sent.add(reply_id)
