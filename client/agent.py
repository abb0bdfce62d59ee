"""The resident client: calls the server for days, and brings offers, tasks and replies where they belong.

The stream lives in the main thread, the app works in another, so that the link's beats go on through any training. A
crash anywhere costs compute, never privacy: the ledger knows what was charged, and gives the newest replies again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from client.cancelling import cancelled
from client.considering import Considering, Owner
from client.dialing import Backoff, Dial
from client.notes import Notes
from client.outbox import Outbox, OutboxError, Reply
from client.running import Runner, is_query, place_of
from client.session import End, Session, Taking
from client.tasks import Task, Tasks
from client.working import Schedule, Working
from security.chunks import compressions
from security.errors import UsageError
from security.frames import ACCEPTED, Answer, Begin, Goodbye, Hello, Offer, Taken, Welcome
from shared_models.faults import Fault

if TYPE_CHECKING:
    from shared_models.plan import Plan

_MOST_HOLDING: Final = 1024  # what a Hello can name
_GOOD_SECONDS: Final = 10.0  # a stream that has lasted so long was a good one
_LAST_WORDS_SECONDS: Final = 10.0  # for replies to leave before the client ends
_HELD_SECONDS: Final = 2.0  # between two looks whether the owner lets out again what was kept back
_CLOCK_SECONDS: Final = 300.0  # certificates are issued with as much room for wrong clocks

_log = logging.getLogger("veil.client")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where and as whom an agent works.

    Attributes:
        site: its name.
        federation: of its certificate.
        server: address, for people.
        home: folder whose disk is written.
        software: version of Veil.
        largest: bytes of the largest message that is taken.
    """

    site: str
    federation: str
    server: str
    home: os.PathLike[str]
    software: str
    largest: int


class Agent:
    """A site's client; made inside of the event loop that it runs in.

    Args:
        place: where and as whom.
        dial: opens a stream.
        explain: finds out why nobody welcomes this site, in one line; may take seconds.
        owner: decides about plans.
        schedule: decides when.
        runner: the app.
        outbox: open.
        notes: where to note what happens.
        until_done: end when the server says that all plans are played.
        every: seconds of which a task that data goes into takes a whole multiple (rule 12); 0: what it takes.
        backoff: between calls.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        place: Place,
        *,
        dial: Dial,
        explain: Callable[[], str | None],
        owner: Owner,
        schedule: Schedule,
        runner: Runner,
        outbox: Outbox,
        notes: Notes,
        until_done: bool = False,
        every: float = 0.0,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._place = place
        self._dial = dial
        self._explain = explain
        self._outbox = outbox
        self._notes = notes
        self._until_done = until_done
        self._backoff = backoff or Backoff()
        self._clock = clock
        self._stop = asyncio.Event()
        self._session: Session | None = None
        self._left_out = False  # a task that there was no room for: it comes again with the next stream
        self._held = False  # a reply, because the owner no longer allows it
        self._coming_under: tuple[Offer, Plan] | None = None  # the offer to which a task belongs that is coming in
        self._delivered = False  # a reply, on this stream: however short, it was a good one
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="veil-app")
        self._tasks = Tasks(largest=place.largest, clock=clock)
        self._working = Working(
            place.home,
            self._tasks,
            runner=runner,
            worker=self._worker,
            schedule=schedule,
            outbox=outbox,
            notes=notes,
            send=self._send,
            every=every,
            clock=clock,
        )
        self._considering = Considering(
            owner, worker=self._worker, answer=self._answer, notes=notes, between=self._working.between
        )

    @property
    def is_working(self) -> bool:
        """Whether the app is at work."""
        return self._tasks.in_work is not None or self._working.is_busy

    def stop(self) -> None:
        """End: begin nothing new, finish and store what is in work, say what there is to say, hang up."""
        self._stop.set()
        self._working.stop()

    async def run(self) -> int:
        """Work until stopped, or until the server says something final.

        Returns:
            The exit code: 0 if it was stopped or all is done, 1 if calling again is of no use.

        Raises:
            OutboxError: the outbox can't be relied on.
        """
        calling, working = asyncio.create_task(self._call_for_ever()), asyncio.create_task(self._working.run())
        considering, making_room = asyncio.create_task(self._considering.run()), asyncio.create_task(self._make_room())
        asking_again = asyncio.create_task(self._ask_again())
        tasks = (calling, working, considering, making_room, asking_again)
        try:
            await asyncio.wait({calling, working, considering}, return_when=asyncio.FIRST_COMPLETED)
            if considering.done():
                considering.result()  # it never ends by itself
            code = calling.result() if calling.done() else 0
            if code == 0:
                self._working.stop()
                await working  # what is in work is worth its compute
                if self._session is not None and self._session.is_welcome:
                    self._session.finish()
                    await asyncio.wait({calling}, timeout=_LAST_WORDS_SECONDS)
            return code
        finally:
            await cancelled(*tasks)
            self._worker.shutdown(wait=False, cancel_futures=True)

    # --- calling

    async def _call_for_ever(self) -> int:
        while True:
            begun = self._clock()
            end = await self._call()
            self._notes.show(connected=False)
            if self._stop.is_set():
                return 0
            if end.goodbye is not None and end.goodbye.is_final:
                line = f"refused by {self._place.server}: {_said(end.goodbye)}"
                self._notes.note("refused for good", line, why=end.goodbye.reason)
                return 1
            if end.goodbye is Goodbye.DONE and self._until_done:
                self._notes.note("done", "done: the server has played all its plans")
                return 0
            if self._left_out and end.why == "ended":
                continue
            if self._delivered or (end.welcomed and self._clock() - begun >= _GOOD_SECONDS):
                self._backoff.reset()
            if end.goodbye in (Goodbye.DONE, Goodbye.REPLACED):
                self._backoff.slow_down()
            await self._say_why(end)
            delay = self._backoff.delay()
            self._notes.detail("waiting to call", f"  calling again in {delay:.1f} s", seconds=round(delay, 1))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay)
                return 0

    async def _call(self) -> End:
        self._left_out = self._delivered = False
        try:
            wire = await self._dial()
        except UsageError as error:  # key or certificate: they may be replaced while this waits
            return End(welcomed=False, why="not dialled", text=str(error))
        if self._considering.accepted is not None:  # before the Hello, which says what the server need not send
            await self._working.keep_only(self._considering.accepted[0].digest)
        hello = Hello(
            software=self._place.software,
            federation=self._place.federation,
            site=self._place.site,
            compression=compressions(),
            holding=(*self._tasks.in_hand, *self._working.stored)[:_MOST_HOLDING],
            largest=self._place.largest,
        )
        self._session = session = Session(wire, self, self._outbox, hello)
        try:
            return await session.run()
        except OutboxError as error:
            if not error.passes:
                raise
            return End(welcomed=False, why="outbox", text=str(error))
        except MemoryError:  # the app is using up what the owner gives
            return End(welcomed=False, why="memory", text="no memory left for a connection")
        finally:
            self._session = None
            await wire.close()

    async def _say_why(self, end: End) -> None:
        server = self._place.server
        if end.text is not None:
            self._notes.once("not connected", end.text, why=end.why)
        elif end.goodbye is not None:
            self._notes.once("server ended", f"{server}: {_said(end.goodbye)}", why=end.goodbye.reason)
        elif end.welcomed:
            self._notes.note("cut", f"connection to {server} lost ({end.why})", why=end.why)
        else:
            text = await _aside(self._explain) or f"{server}: no connection ({end.why})"
            self._notes.once("not connected", text, why=end.why)

    async def _make_room(self) -> None:
        """Whenever nothing waits, call anew if a task was left out: it comes again."""
        while True:
            await self._working.idle.wait()
            if self._left_out and self._session is not None:
                self._session.finish()
            self._working.idle.clear()

    def _answer(self, answer: Answer) -> None:
        if self._session is not None:
            self._session.answer(answer)
            if answer.code == ACCEPTED:
                self._send_stored()

    def _send(self, reply_id: str) -> None:
        if self._session is not None:
            self._session.send(reply_id)

    def _send_stored(self) -> None:
        for reply_id in self._working.stored:
            self._send(reply_id)

    async def _ask_again(self) -> None:
        """What was kept back leaves once the owner allows it again."""
        while True:
            await asyncio.sleep(_HELD_SECONDS)
            if self._held:
                self._held = False
                self._send_stored()

    # --- what the session brings

    def welcomed(self, welcome: Welcome) -> None:
        """The server lets this site in."""
        notes, server = self._notes, self._place.server
        notes.note("connected", f"connected to {server} as {self._place.site}", software=welcome.software)
        notes.show(connected=True)
        notes.over("not connected")
        notes.over("server ended")
        ahead = time.time() - welcome.clock
        if abs(ahead) > _CLOCK_SECONDS:
            way = "ahead of" if ahead > 0 else "behind"
            text = f"this machine's clock is {_span(abs(ahead))} {way} the server's; one of the two is wrong"
            notes.once("clock", text, seconds=round(ahead))
        self._considering.connected()
        self._send_stored()  # what no data went into; the rest once its plan is accepted on this stream

    def offered(self, offer: Offer) -> None:
        """A plan is about to be played."""
        self._considering.offered(offer)

    async def begins(self, begin: Begin) -> Taking:
        """Whether a task is wanted."""
        if self._working.has_reply(begin.id):
            return Taking.ANSWERED
        if self._stop.is_set() or self._tasks.has(begin.id):
            return Taking.SKIP
        if len(self._working.stored) >= _MOST_HOLDING:  # a server that takes no replies fills no disk with them
            self._left_out = True
            return Taking.SKIP
        if self._considering.accepted is None:
            await self._working.refuse(begin, Fault.PLAN_MISMATCH)
            return Taking.SKIP
        if begin.size > self._place.largest:
            await self._working.refuse(begin, Fault.POLICY_RESOURCES)
            return Taking.SKIP
        if not self._tasks.has_room(begin.size):
            self._left_out = True
            return Taking.SKIP
        self._coming_under = self._considering.accepted
        return Taking.TAKE

    def received(self, begin: Begin, payload: bytearray) -> None:
        """A task is here."""
        assert self._coming_under is not None
        offer, plan = self._coming_under  # whatever was offered while it came
        self._notes.detail("task", f"  task {begin.id[:8]}: {begin.size} bytes", task=begin.id, bytes=begin.size)
        ends = self._clock() + begin.seconds if begin.seconds > 0 else None
        query = is_query(begin.header)
        self._working.add(Task(begin=begin, offer=offer, plan=plan, payload=payload, is_query=query, ends=ends))

    async def damaged(self, begin: Begin) -> None:
        """A task came damaged, which TLS rules out on the way: it would come damaged again."""
        await self._working.refuse(begin, Fault.CLIENT_FAILED)

    def recalled(self, task_id: str) -> None:
        """A task's time is over."""
        if self._working.recall(task_id):
            self._notes.detail("recalled", f"  task {task_id[:8]}: recalled before it was begun", task=task_id)

    async def may_leave(self, reply: Reply) -> bool:
        """Whether a stored reply may be sent now: what was made from data needs the owner's yes, each time."""
        if not reply.plan:
            return True
        allowed = await self._considering.may_leave(reply.plan, reply.fields)
        if allowed is None:
            return False
        if allowed:
            self._notes.over("kept back")
        else:
            self._held = True
            text = "a reply is kept back: policy, approval or data in site.toml no longer allow it"
            self._notes.once("kept back", text, task=reply.id)
        return allowed

    async def delivered(self, reply_id: str, taken: Taken) -> None:
        """The server has a reply, or will not have it."""
        self._delivered = self._delivered or taken is Taken.STORED
        word = taken.name.lower().replace("_", "-")
        if taken in (Taken.TOO_LARGE, Taken.DAMAGED):
            self._notes.note("reply not taken", f"the server did not take a reply: {word}", task=reply_id, taken=word)
            self._notes.fault(f"reply-{word}")
        else:
            self._notes.detail("delivered", f"  reply {reply_id[:8]}: {word}", task=reply_id, taken=word)
        await self._working.delivered(reply_id)


_GOODBYES: Final = {
    Goodbye.DONE: "all plans are played",
    Goodbye.SHUTDOWN: "the server stops for now",
    Goodbye.REPLACED: "somebody else has connected as this site; if that wasn't you, have the certificate revoked",
    Goodbye.BUSY: "the server is busy",
    Goodbye.MALFORMED: "the server did not understand this client; compare the versions of Veil",
    Goodbye.PROTOCOL: "it speaks another version of the link; install the same version of Veil",
    Goodbye.UNKNOWN_SITE: "it doesn't know this site; ask its operator for the newest roster",
    Goodbye.OTHER_SITE: "the certificate is another site's; mend `site` in site.toml, or install the right one",
    Goodbye.OTHER_FEDERATION: "it belongs to another federation; compare `address` in site.toml",
    Goodbye.REVOKED: "this site's certificate was revoked; ask the federation's authority",
    Goodbye.EXPIRED: "this site's certificate has expired or is not valid yet; look at the clock, or ask for a new one",
    Goodbye.SILENT: "it heard nothing for too long",
}


async def _aside(function: Callable[[], str | None]) -> str | None:
    """Call a function in a thread that nobody waits for when the process ends."""
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str | None] = loop.create_future()

    def call() -> None:
        try:
            text = function()
        except Exception as error:  # what it looks at may be in any state
            _log.warning("no reason was found: %s", place_of(error))
            text = None
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(lambda: None if found.done() else found.set_result(text))

    threading.Thread(target=call, name="veil-probe", daemon=True).start()
    return await found


def _said(goodbye: Goodbye) -> str:
    return f"{goodbye.reason}: {_GOODBYES[goodbye]}"


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"
