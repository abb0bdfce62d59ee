"""The server's end of the link: sites dial in over mutual TLS, and stay connected by one stream each.

It runs in a thread with an event loop of its own, whatever the number of sites. What may take long, the disk above all,
is done by a few more threads. Every public method may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, TypeVar

import grpc

from security.certificates import CertificateError, Peer, read_peer
from security.chunks import agreed
from security.frames import (
    Answer,
    Farewell,
    FrameError,
    Goodbye,
    Hello,
    Offer,
    Welcome,
    decode,
    encode,
)
from server.doors import Doors
from server.limits import Limits, TokenBucket
from server.link_observer import LinkObserver, SilentLink
from server.link_post import Traffic
from server.link_stream import LinkStream
from server.listener import Listener, Read, Write
from server.mailbox import Mailbox

_DISK_THREADS: Final = 4

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A site that is connected.

    Attributes:
        peer: who its certificate speaks for.
        since: when it came, in seconds since 1970.
        silent: seconds since anything was heard of it.
        received, sent: bytes of frames on this stream.
        tasks: that it has in hand.
        software: its version of Veil, as it says.
    """

    peer: Peer
    since: float
    silent: float
    received: int
    sent: int
    tasks: int
    software: str


class LinkServer:
    """Lets sites in, sends them their tasks, takes their replies.

    Args:
        address: HOST:PORT to listen at; port 0 takes any.
        credentials: of mutual TLS.
        mailbox: tasks and replies.
        doors: who may come in.
        limits: bounds.
        beat_seconds: between two signs of life; who gives none for three of them is gone.
        observer: is told what happens.
        clock: seconds since 1970, for certificates alone.
    """

    def __init__(
        self,
        *,
        address: str,
        credentials: grpc.ServerCredentials,
        mailbox: Mailbox,
        doors: Doors,
        limits: Limits | None = None,
        beat_seconds: float = 10.0,
        observer: LinkObserver | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.mailbox = mailbox
        self.doors = doors
        self.limits = limits or Limits()
        self.beat_seconds = beat_seconds
        self.observer: LinkObserver = observer or SilentLink()
        self._clock = clock
        self._software = version("veil-fl")
        # shared by threads
        self._changes = threading.Condition()
        self._version = 0
        self._offer: Offer | None = None
        self._answers: dict[str, int] = {}
        self._streams: dict[str, tuple[LinkStream, float]] = {}
        self._last: dict[str, Peer] = {}
        self._departures = 0
        self._total = Traffic()
        # of the event loop
        self._disk = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="veil-link-disk")
        self._leaving = asyncio.Event()
        self._farewell: Goodbye | None = None
        self._came: dict[str, float] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._listener = Listener(
            address,
            credentials,
            serve=self.serve,
            refuse=lambda pem, _, write: self._refuse(write, Goodbye.BUSY, _name_in(pem)),
            most_streams=self.limits.streams_of_site,
        )

    # --- for the daemon

    def start(self) -> int:
        """Listen. Returns the port.

        Raises:
            RunError: the address can't be listened at.
        """
        return self._listener.start()

    def stop(self, *, why: Goodbye = Goodbye.SHUTDOWN) -> None:
        """Tell every site why its stream ends, and stop. A second call does nothing."""

        def begin() -> None:
            self._farewell = why
            self._leaving.set()
            for stream, _ in list(self._streams.values()):
                stream.end(why)

        self._listener.stop(begin, self.limits.farewell_seconds + 1.0)
        self._disk.shutdown()
        self.changed()

    @property
    def is_serving(self) -> bool:
        """Whether it listens."""
        return self._listener.is_serving

    def offer(self, run: str, plan: str, digest: str) -> None:
        """Offer a plan to every site, now and whenever one connects; earlier answers are void.

        Only tasks of this run are sent, and only to sites that have accepted it.

        Args:
            run: server's id of the run, in hexadecimal.
            plan: resolved, as TOML.
            digest: of the plan.

        Raises:
            ValueError: the plan is too large, or run or digest has not its form.
        """
        offer = Offer(run=run, plan=plan, digest=digest)
        encode(offer)
        self._set_offer(offer)

    def withdraw(self) -> None:
        """There is no current plan any more."""
        self._set_offer(None)

    @property
    def offered(self) -> Offer | None:
        """The current offer."""
        return self._offer

    def answers(self) -> Mapping[str, int]:
        """The sites' answers to the current offer; kept while a site is away."""
        with self._changes:
            return dict(self._answers)

    def connected(self) -> Mapping[str, Connection]:
        """The sites that are connected, by name."""
        with self._changes:
            streams = sorted(self._streams.items())
        now = time.monotonic()  # an event loop's clock is the same
        return {
            site: Connection(
                peer=stream.peer,
                since=since,
                silent=now - stream.heard,
                received=stream.traffic.received,
                sent=stream.traffic.sent,
                tasks=stream.tasks,
                software=stream.software,
            )
            for site, (stream, since) in streams
        }

    def traffic(self) -> tuple[int, int]:
        """Bytes of frames received and sent since the server began."""
        return self._total.received, self._total.sent

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until a condition holds; it is looked at whenever something changes on the link.

        Args:
            condition: must not change anything.
            timeout: seconds; None for ever.

        Returns:
            Whether it held in the end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._changes:
                seen = self._version
            if condition():
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            with self._changes:
                self._changes.wait_for(lambda seen=seen: self._version != seen, left)  # type: ignore[misc]

    def changed(self) -> None:
        """Wake whoever waits."""
        with self._changes:
            self._version += 1
            self._changes.notify_all()

    def notify_tasks(self, sites: Iterable[str]) -> None:
        """There are new tasks for these sites in the mailbox."""
        self._tell(tuple(sites), lambda stream: stream.tell_tasks())

    def recall(self, tasks: Mapping[str, str]) -> None:
        """End the time of tasks, and tell those of their sites that are connected.

        Args:
            tasks: the site of each, by id.
        """
        self.mailbox.recall(tuple(tasks))
        by_site: dict[str, list[str]] = {}
        for task, site in tasks.items():
            by_site.setdefault(site, []).append(task)
        for site, ids in by_site.items():
            self._tell((site,), lambda stream, ids=ids: stream.tell_recalled(ids))  # type: ignore[misc]
        self.changed()

    def close_site(self, site: str, why: Goodbye) -> None:
        """End a site's stream at once, if it has one."""
        self._tell((site,), lambda stream: stream.end(why))
        with self._changes:
            self._departures += 1
        self.changed()

    @property
    def departures(self) -> int:
        """Goes up whenever a site leaves, is closed or gives an answer: it may have become barred, or refuse."""
        return self._departures

    def barred(self, site: str) -> Goodbye | None:
        """Why a site need not be waited for: it is off the roster, or revoked; None if it may come back."""
        return self.doors.bars(site, self._last.get(site))

    # --- for its streams

    def still(self, peer: Peer) -> Goodbye | None:
        """Why a connected site must go now."""
        return self.doors.still(peer, self._clock())

    def note_answer(self, site: str, answer: Answer) -> bool:
        """Write down a site's answer, if it is one to the current offer."""
        with self._changes:
            offer = self._offer
            if offer is None or (answer.run, answer.digest) != (offer.run, offer.digest):
                return False
            if self._answers.get(site) == answer.code:  # said again it is no news, and need not wake anybody
                return True
            self._answers[site] = answer.code
            self._departures += 1
        self.changed()
        self.observer.answered(site, answer.code)
        return True

    async def work(self, call: Callable[[], Result]) -> Result:
        """Do what may take long on another thread, and to its end even if nobody waits for it any more."""
        future = asyncio.get_running_loop().run_in_executor(self._disk, call)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait((future,))
            if not future.cancelled():
                future.exception()  # nobody is left to hear it
            raise

    async def serve(self, pem: bytes, read: Read, write: Write) -> None:
        """Serve one stream, on the link's event loop, until it ends.

        Args:
            pem: the certificate that TLS has accepted.
            read: the next frame's bytes; None at the end. It is never cancelled.
            write: sends a frame; returns when the next may be given.
        """
        site: str | None = None
        try:
            found = await self._come_in(pem, read, write) if self._farewell is None else self._farewell
            if isinstance(found, LinkStream):
                site = found.peer.name
                await self._stay(found)
            elif found is not None:
                site = _name_in(pem)
                await self._refuse(write, found, site)
        except Exception as error:  # of one stream; the others go on
            self.observer.failed(site, _place_of(error))

    # --- inside

    async def _come_in(self, pem: bytes, read: Read, write: Write) -> LinkStream | Goodbye | None:
        """A stream for who said a good Hello; why not for who didn't; None for who left before that."""
        pending = asyncio.ensure_future(read())
        pending.add_done_callback(lambda done: done.cancelled() or done.exception())
        stopping = asyncio.ensure_future(self._leaving.wait())
        await asyncio.wait((pending, stopping), timeout=self.limits.hello_seconds, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not pending.done():
            return Goodbye.SILENT if self._farewell is None else self._farewell
        data = pending.result()
        if data is None:
            return None
        try:
            hello = decode(data)
        except FrameError:
            return Goodbye.MALFORMED
        if not isinstance(hello, Hello):
            return Goodbye.MALFORMED
        peer = self.doors.check(pem, hello, self._clock())
        if isinstance(peer, Goodbye):
            return peer
        if self._farewell is not None:
            return self._farewell
        busy = self._busy(peer.name)
        if busy is not None:
            return busy
        self._total.received += len(data)
        return self._stream(peer, hello, Traffic(received=len(data)), read, write)

    def _busy(self, site: str) -> Goodbye | None:
        now, before = time.monotonic(), self._came.get(site)
        if before is not None and now - before < self.limits.hello_gap_seconds:
            return Goodbye.BUSY
        if site not in self._streams and len(self._streams) >= self.limits.most_sites:
            return Goodbye.BUSY
        self._came[site] = now
        return None

    def _stream(
        self,
        peer: Peer,
        hello: Hello,
        traffic: Traffic,
        read: Read,
        write: Write,
    ) -> LinkStream:
        welcome = Welcome(
            software=self._software,
            beat_seconds=self.beat_seconds,
            clock=self._clock(),
            compression=agreed(hello.compression),
            largest=self.limits.largest_message,
        )
        bucket = TokenBucket(self.limits.frames_per_second, self.limits.frames_burst)
        return LinkStream(
            self,
            peer,
            hello,
            welcome=welcome,
            read=read,
            write=write,
            bucket=self._buckets.setdefault(peer.name, bucket),
            traffic=traffic,
            total=self._total,
        )

    async def _stay(self, stream: LinkStream) -> None:
        """A stream's time as its site's one."""
        site, begun, why = stream.peer.name, time.monotonic(), None
        with self._changes:
            older = self._streams.get(site)
            self._streams[site] = stream, self._clock()
            self._last[site] = stream.peer
        if older is not None:
            older[0].end(Goodbye.REPLACED)
        try:
            self.observer.connected(site, stream.software)
            self.changed()
            why = await stream.run()
        finally:
            with self._changes:
                if self._streams.get(site, (None,))[0] is stream:
                    del self._streams[site]
                self._departures += 1
            self.changed()
            self.observer.disconnected(site, why, time.monotonic() - begun)

    async def _refuse(self, write: Write, why: Goodbye, site: str | None) -> None:
        self.observer.refused(site, why)
        task = asyncio.ensure_future(write(encode(Farewell(why=why))))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.wait((task,), timeout=self.limits.farewell_seconds)
        task.cancel()

    def _set_offer(self, offer: Offer | None) -> None:
        with self._changes:
            self._offer = offer
            self._answers = {}
            sites = tuple(self._streams)
        self._tell(sites, lambda stream: stream.tell_offer())
        self.changed()

    def _tell(self, sites: Collection[str], say: Callable[[LinkStream], None]) -> None:
        """Say something to the streams of sites that are connected."""

        def tell() -> None:
            for site in sites:
                found = self._streams.get(site)
                if found is not None:
                    say(found[0])

        self._listener.call(tell)


def _name_in(pem: bytes) -> str | None:
    try:
        return read_peer(pem).name
    except CertificateError:
        return None


def _place_of(error: BaseException) -> str:
    """What kind of error it was, and where in the code; its text may hold what a stranger sent."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {place.filename}:{place.lineno}"
