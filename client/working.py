"""Tasks on their way to replies: waiting, in work, on the disk, with the server.

A task is in hand from its last byte until its reply is on the disk, and the reply until the server has it; what is in
hand is never begun a second time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Final, TypeVar

from client.notes import Notes, Value
from client.outbox import Outbox, OutboxError
from client.running import Answer, Runner
from client.tasks import Task, Tasks
from security.frames import Begin
from shared_models.faults import Fault
from shared_models.protocol import PERSONALISE, SECURE_KEYS, SECURE_SHARES, SECURE_SURVIVORS, SECURE_UNMASK

_DISK_SECONDS: Final = 30.0  # between two tries to write on a full disk
_LONGEST_WAIT: Final = 3600.0
_ROOM_SPARE: Final = 16 << 20  # bytes of disk beside what a task is going to write
_ROOM_TIMES: Final = 4  # ledger and outbox, each twice: SQLite's log, then the file
_VERBS: Final = {"train": "trained", "evaluate": "judged"}
_STEPS: Final = {
    SECURE_KEYS: "offered keys for a secure sum",
    SECURE_SHARES: "shared the secrets of its masks",
    SECURE_SURVIVORS: "confirmed who is in the sum",
    SECURE_UNMASK: "helped to open the sum",
}

Schedule = Callable[[], tuple[str | None, float]]
"""Why work may not begin now, or None; and after how many seconds it is worth asking again."""

Found = TypeVar("Found")

_log = logging.getLogger("veil.client")


def touches_data(kind: str) -> bool:
    """Whether what is asked for may be made from data, so that how long it takes may tell of them."""
    return not kind.startswith("query.") or kind == PERSONALISE


def time_of(took: float, every: float) -> float:
    """The least whole multiple of `every`, above zero, that is no less than what was taken; all in seconds."""
    return every * max(1, math.ceil(took / every))


class Working:
    """The tasks of a site, one at a time in a thread of their own.

    Args:
        home: folder whose disk is written.
        tasks: those that wait.
        runner: the app.
        worker: the thread.
        schedule: when work may begin.
        outbox: where replies lie.
        notes: where to note what happens.
        send: sends a stored reply, if anybody listens.
        every: seconds; a task that data goes into takes a whole multiple of them, for all that anybody sees. 0: no more
            than it takes.
        clock: monotonic, seconds.
    """

    def __init__(
        self,
        home: os.PathLike[str],
        tasks: Tasks,
        *,
        runner: Runner,
        worker: Executor,
        schedule: Schedule,
        outbox: Outbox,
        notes: Notes,
        send: Callable[[str], None],
        every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._tasks = tasks
        self._runner = runner
        self._worker = worker
        self._schedule = schedule
        self._outbox = outbox
        self._notes = notes
        self._send = send
        self._every = every
        self._clock = clock
        self._stored = dict.fromkeys(reply.id for reply in outbox.replies())
        self._job: Future[Any] | None = None
        self._stop = asyncio.Event()
        self._changed = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while nothing waits."""
        self.between = asyncio.Event()
        """Set while no task takes its time: what else the worker does may be seen."""
        self.between.set()
        self._show_unsent()

    @property
    def is_busy(self) -> bool:
        """Whether the app is at work, or a reply is being stored: also when nobody waits for it any more."""
        return self._job is not None and not self._job.done()

    @property
    def stored(self) -> tuple[str, ...]:
        """Replies that the server doesn't have yet, oldest first."""
        return tuple(self._stored)

    def has_reply(self, task_id: str) -> bool:
        """Whether a task's reply is stored."""
        return task_id in self._stored

    def add(self, task: Task) -> None:
        """One more task."""
        self._tasks.add(task)
        self._changed.set()

    def recall(self, task_id: str) -> bool:
        """A task's time is over; whether it was not begun."""
        self._changed.set()
        return self._tasks.recall(task_id)

    def stop(self) -> None:
        """Begin nothing more; `run` returns once what is in work is stored."""
        self._stop.set()
        self._changed.set()

    async def keep_only(self, plan: str) -> None:
        """Let go of replies of other plans than the one that is accepted now; the ledger has what was charged for."""
        if self._tasks.in_work is not None:  # its reply may be on the disk, and not yet known here
            return
        with suppress(OutboxError):  # they lie there a little longer
            for task_id in await asyncio.to_thread(self._outbox.drop_other_plans, plan):
                self._stored.pop(task_id, None)
            self._show_unsent()

    async def delivered(self, task_id: str) -> None:
        """The server needs a reply no more."""
        try:
            await asyncio.to_thread(self._outbox.drop, task_id)
        except OutboxError as error:  # it will be sent again one day, and be known
            self._notes.once("outbox", str(error))
        self._stored.pop(task_id, None)
        self._show_unsent()

    async def refuse(self, begin: Begin, fault: Fault) -> None:
        """Answer a task without looking at it."""
        self._notes.note("task refused", task=begin.id, fault=fault.reason)
        with suppress(ValueError, OutboxError):  # nobody can be answered, or not now
            found = self._runner.refusal(header=begin.header, fault=fault)
            await asyncio.to_thread(self._outbox.store, begin.id, header=found.header, payload=found.payload)
            self._has_stored(begin.id)

    async def run(self) -> None:
        """Work, until told to stop.

        Raises:
            OutboxError: the outbox can't be relied on.
        """
        while (task := await self._next()) is not None:
            payload, begun = [self._tasks.begin(task)], self._clock()
            if self._every:
                self.between.clear()
            self._notes.show(working=True)
            try:
                kind = await self._answer(task, payload)
                if kind is not None and await self._time_is_over(kind, begun):
                    self._has_stored(task.id)
            finally:
                self._tasks.end()
                self._notes.show(working=False)
                self.between.set()

    # --- one task

    async def _answer(self, task: Task, payload: list[bytearray]) -> str | None:
        """Work on a task and store the reply; what was asked, or None where nothing is stored."""
        found = await self._patiently(lambda: self._worked(task, payload))
        if found is None:
            return None
        answer, remembers = found

        def store() -> bool:
            state = answer.state if remembers else None
            self._outbox.store(
                task.id,
                header=answer.header,
                payload=answer.payload,
                plan="" if task.is_query or answer.fault is not None else task.offer.digest,
                fields=answer.fields,
                run=task.offer.run,
                state=state,
            )
            return True

        stored = await self._patiently(store)
        if stored is None:
            self._notes.note("reply not stored", "a reply could not be stored; the server asks again", task=task.id)
            return None
        self._tell(task, answer)
        return answer.kind

    async def _time_is_over(self, kind: str, begun: float) -> bool:
        """Wait until a task's whole time is over (rule 12), good reply or not; False if the client ends before.

        Nothing else is begun meanwhile: when it could be would tell when the work was done.
        """
        if not self._every or not touches_data(kind):
            return True
        ends = time_of(self._clock() - begun, self._every) + begun
        if ends - begun > self._every:
            text = f"a task took longer than release.every_seconds = {self._every:g}, which can be seen; give it more"
            self._notes.once("late", text, seconds=self._every)
        while (left := ends - self._clock()) > 0 and not self._stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), left)
        return not self._stop.is_set()  # else the next process sends it, when it is begun

    def _worked(self, task: Task, payload: list[bytearray]) -> tuple[Answer, bool] | None:
        state = self._outbox.state(task.offer.run)  # first: it may have to be tried again
        try:
            # Taken out of the list, so that nobody else holds the payload while the app works.
            answer = self._runner.answer(
                header=task.begin.header, payload=payload.pop(), plan=task.offer.plan, state=state
            )
        except ValueError:
            _log.warning("a task's head could not be read: there is nobody to answer to")
            return None
        return answer, answer.state != state

    async def _patiently(self, job: Callable[[], Found]) -> Found | None:
        """Do something in the worker's thread, again while the disk is full; None if the client ends before."""
        while True:
            try:
                future = self._worker.submit(job)
                self._job = future
                found = await asyncio.wrap_future(future)
            except OutboxError as error:
                if not error.passes:
                    raise
                self._notes.once("outbox", str(error))
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _DISK_SECONDS)
                    return None
            else:
                self._notes.over("outbox")
                return found

    def _has_stored(self, task_id: str) -> None:
        self._stored[task_id] = None
        self._show_unsent()
        self._send(task_id)

    def _show_unsent(self) -> None:
        self._notes.show(unsent=len(self._stored))

    # --- which one, and when

    async def _next(self) -> Task | None:
        """The task to be worked on; None once the client ends."""
        while True:
            self._changed.clear()
            self._drop_late()
            if self._stop.is_set():
                self._tasks.clear()
                return None
            if not len(self._tasks):
                self._waits_for(None)
                self.idle.set()
                await self._changed.wait()
                self.idle.clear()
                continue
            first = self._tasks.next(queries_only=False)
            reason, again = await asyncio.to_thread(self._reason, 0 if first is None else first.begin.size)
            task = self._tasks.next(queries_only=reason is not None)
            if task is not None and not self._stop.is_set():
                if reason is None:
                    self._waits_for(None)
                return task
            self._waits_for(reason)
            ends = self._tasks.seconds_to_next_end()
            wait = min(again, _LONGEST_WAIT, _LONGEST_WAIT if ends is None else max(0.0, ends))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), wait)

    def _drop_late(self) -> None:
        for task_id in self._tasks.drop_late():
            text = f"task {task_id[:8]}: its time was over before work could begin"
            self._notes.note("too late", text, task=task_id)
            self._notes.fault("too-late")

    def _reason(self, size: int) -> tuple[str | None, float]:
        """Why a task of so many bytes must wait, or None; and when to look again, in seconds."""
        reason, again = self._schedule()
        free, needed = shutil.disk_usage(self._home).free, _ROOM_TIMES * size + _ROOM_SPARE
        if reason is not None or free >= needed:
            return reason, again
        home = os.fspath(self._home)
        return f"the disk of {home} has {free >> 20} MB left, a round needs {needed >> 20}", _DISK_SECONDS

    def _waits_for(self, reason: str | None) -> None:
        self._notes.show(waiting=reason)
        if reason is None:
            self._notes.over("waiting")
        else:
            self._notes.once("waiting", f"waiting: {reason}", reason=reason)

    def _tell(self, task: Task, answer: Answer) -> None:
        plan = task.plan
        facts: dict[str, Value] = {
            "task": task.id,
            "kind": answer.kind if answer.kind in _VERBS or task.is_query or answer.kind in _STEPS else "other",
            "round": answer.round,
            "seconds": round(answer.seconds, 3),
            "epsilon": answer.epsilon,
            "fault": None if answer.fault is None else answer.fault.reason,
        }
        if answer.fault is not None:
            self._notes.fault(answer.fault.reason)
        if answer.epsilon is not None:
            self._notes.show(epsilon=answer.epsilon)
        if answer.round is None:
            self._notes.detail("answered", f"  answered a question in {answer.seconds:.1f} s", **facts)
            return
        self._notes.show(round=answer.round)
        if answer.kind in _STEPS and answer.fault is None:
            text = f"  round {answer.round}: {_STEPS[answer.kind]} in {answer.seconds:.1f} s"
            self._notes.detail("answered", text, **facts)
            return
        parts = [f"round {answer.round}/{plan.federation.rounds}"]
        if answer.fault is None:
            parts.append(f"{_VERBS.get(answer.kind, 'worked')} {answer.seconds:.1f} s")
        elif answer.fault.is_refusal:
            parts.append(f"refused: {answer.fault.reason}")
        else:
            parts.append(f"failed: {answer.fault.reason}; client.log says where")
        if answer.epsilon is not None and plan.privacy.epsilon is not None:
            parts.append(f"epsilon so far {answer.epsilon:.3g} of {plan.privacy.epsilon:g}")
        elif not plan.is_private:
            parts.append("no privacy")
        self._notes.note("answered", "  ".join(parts), **facts)
