"""One stream of one site, from its Hello to the Farewell: what is read, what is written, and when it ends.

Three tasks work at it on the link's event loop: one reads and acts on frames, one writes them, one watches time. They
hold one frame each, so a stream's memory is bounded whatever the site does: nothing more is read while what was read is
not dealt with, and a task's payload is read from the disk chunk by chunk, the next when the one before is on its way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection
from typing import Final

from security.certificates import Peer
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
    Recall,
    Receipt,
    Welcome,
    decode,
    encode,
)
from server.limits import TokenBucket
from server.link_post import Post, Traffic
from server.listener import Read, Write
from server.reply_receiver import ReplyReceiver
from server.task_sender import TaskSender

_BEATS_OF_SILENCE: Final = 3
_LOOKS_A_BEAT: Final = 4


class LinkStream:
    """A stream that has been let in. All its methods are of the event loop.

    Args:
        post: the link.
        peer: who it is.
        hello: its first word.
        welcome: the first word to it.
        read: the next frame's bytes; None at the end.
        write: returns when the bytes are on their way, and the next may be given.
        bucket: of the site: how fast it may send.
        traffic: what was said before.
        total: what all sites together have said and heard.
    """

    def __init__(
        self,
        post: Post,
        peer: Peer,
        hello: Hello,
        *,
        welcome: Welcome,
        read: Read,
        write: Write,
        bucket: TokenBucket,
        traffic: Traffic,
        total: Traffic,
    ) -> None:
        self.peer = peer
        self.software = hello.software
        self.traffic = traffic
        self._post = post
        self._raw_read = read
        self._raw_write = write
        self._bucket = bucket
        self._total = total
        self._loop = asyncio.get_running_loop()
        # the end
        self._why: Goodbye | None = None
        self._ending = asyncio.Event()
        # reading
        self.heard = self._loop.time()
        self._reading_since: float | None = None
        # writing
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._welcome: Welcome | None = welcome
        self._receipts: deque[Receipt] = deque()
        self._recalls: dict[str, None] = {}
        self._offer_due = True
        self._beat_due = False
        self._written = self._loop.time()
        self._writing_since: float | None = None
        self._sender = TaskSender(
            post,
            peer.name,
            hello.holding,
            largest=hello.largest,
            compression=welcome.compression,
            wake=self._wake.set,
        )
        self._receiver = ReplyReceiver(
            post, peer.name, compression=welcome.compression, tell=self._receipt, settled=self._sender.settle
        )

    # --- what the link says

    def end(self, why: Goodbye | None) -> None:
        """End the stream: nothing more is read or done. The first reason counts; None if nobody is there to hear it."""
        if not self._ending.is_set():
            self._why = why
            self._ending.set()
            self._wake.set()
            self._room.set()

    def tell_offer(self) -> None:
        """The current offer has changed."""
        self._sender.offer_changed()
        self._offer_due = True
        self._wake.set()

    def tell_tasks(self) -> None:
        """There may be new tasks."""
        self._sender.look()

    def tell_recalled(self, ids: Collection[str]) -> None:
        """Tasks whose time is over."""
        for task in ids:
            self._receiver.recall(task)
            if self._sender.settle(task):
                self._recalls[task] = None
        self._wake.set()

    @property
    def tasks(self) -> int:
        """Tasks that the site has and hasn't answered."""
        return len(self._sender.handed)

    # --- its life

    async def run(self) -> Goodbye | None:
        """Serve the stream until it ends; returns why."""
        workers = [asyncio.ensure_future(work()) for work in (self._read_frames, self._watch)]
        writer = asyncio.ensure_future(self._write_frames())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await asyncio.wait((*workers, writer, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # A task that is done before the end has failed.
            ended = [task.exception() for task in (*workers, writer) if task.done() and not task.cancelled()]
            failures = [error for error in ended if error is not None]
            self.end(Goodbye.BUSY if failures else None)
            for task in (*workers, ending):
                task.cancel()
            await asyncio.wait((*workers, ending))
            await asyncio.wait((writer,), timeout=self._post.limits.farewell_seconds)
            writer.cancel()
            await asyncio.wait((writer,))
            await self._receiver.drop()
        if failures:
            raise failures[0]
        return self._why

    async def _watch(self) -> None:
        """Beats, silence, and whether the site may stay."""
        beat = self._post.beat_seconds
        looks = 0
        while True:
            await asyncio.sleep(beat / _LOOKS_A_BEAT)
            now = self._loop.time()
            if now - self._written >= beat:
                self._beat_due = True
                self._wake.set()
            if self._reading_since is not None and now - self._reading_since > _BEATS_OF_SILENCE * beat:
                self.end(Goodbye.SILENT)
            if self._writing_since is not None and now - self._writing_since > self._post.limits.stall_seconds:
                self.end(Goodbye.SILENT)
            looks += 1
            if looks % _LOOKS_A_BEAT == 0:
                self._check_still()

    def _check_still(self) -> None:
        gone = self._post.still(self.peer)
        if gone is not None:
            self.end(gone)

    # --- reading

    async def _read_frames(self) -> None:
        held, mailbox = self._sender.handed, self._post.mailbox
        if held:
            wanted = await self._post.work(lambda: mailbox.wanted(self.peer.name, held))
            self.tell_recalled([task for task in held if task not in wanted])
        while True:
            data = await self._read()
            if data is None:
                self.end(None)
            if data is None or self._ending.is_set():
                return
            try:
                await self._act(decode(data))
            except FrameError:
                self.end(Goodbye.MALFORMED)
                return

    async def _read(self) -> bytes | None:
        """The next frame's bytes, at the site's pace or its rate, whichever is slower."""
        wait = self._bucket.take(self._loop.time())
        if wait > 0:
            await asyncio.sleep(wait)
        # A read can't be taken back: one that nobody waits for any more is left to end with the stream.
        pending = asyncio.ensure_future(self._raw_read())
        pending.add_done_callback(_forget_error)
        self._reading_since = self._loop.time()
        try:
            data = await asyncio.shield(pending)
        finally:
            self._reading_since = None
        if data is not None:
            self.heard = self._loop.time()
            self.traffic.received += len(data)
            self._total.received += len(data)
        return data

    async def _act(self, frame: Frame) -> None:
        match frame:
            case Beat():
                pass
            case Chunk():
                await self._receiver.add(frame)
            case Begin():
                self._check_still()
                if not self._ending.is_set():
                    await self._receiver.begin(frame)
            case Answer():
                if self._post.note_answer(self.peer.name, frame):  # else the offer was withdrawn meanwhile
                    self._sender.answered(frame)
            case Receipt():
                await self._sender.take_receipt(frame)
            case Farewell():
                self.end(None)
            case _:
                raise FrameError("a frame that a site may not send now")

    async def _receipt(self, receipt: Receipt) -> None:
        """Tell what became of a reply, as soon as the site has read enough of what it was told before."""
        while len(self._receipts) >= self._post.limits.receipts and not self._ending.is_set():
            self._room.clear()
            await self._room.wait()
        self._receipts.append(receipt)
        self._wake.set()

    # --- writing

    async def _write_frames(self) -> None:
        while True:
            frame = self._next_word()
            if frame is None and not self._ending.is_set():
                frame = await self._sender.next_frame()
            if self._ending.is_set() and not isinstance(frame, Farewell):
                if self._why is None:
                    return
            elif frame is None:
                await self._wake.wait()
            else:
                await self._write(encode(frame))
                if isinstance(frame, Farewell):
                    return

    async def _write(self, data: bytes) -> None:
        self._writing_since = self._loop.time()
        try:
            await self._raw_write(data)
        except asyncio.CancelledError:
            raise
        except Exception:  # whatever the library calls it, the site is gone
            self.end(None)
            return
        finally:
            self._writing_since = None
        self._written = self._loop.time()
        self.traffic.sent += len(data)
        self._total.sent += len(data)

    def _next_word(self) -> Frame | None:
        """The next frame that is not part of a task."""
        self._wake.clear()
        if self._ending.is_set():
            return None if self._why is None else Farewell(why=self._why)
        if self._welcome is not None:
            welcome, self._welcome = self._welcome, None
            return welcome
        if self._receipts:
            receipt = self._receipts.popleft()
            self._room.set()
            return receipt
        if self._recalls:
            task = next(iter(self._recalls))
            del self._recalls[task]
            return Recall(id=task)
        if self._offer_due:
            self._offer_due = False
            if self._post.offered is not None:
                return self._post.offered
        if self._beat_due:
            self._beat_due = False
            return Beat()
        return None


def _forget_error(future: asyncio.Future[bytes | None]) -> None:
    """Nobody waits for a read whose stream is over; its error is nobody's."""
    if not future.cancelled():
        future.exception()
