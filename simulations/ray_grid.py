"""A grid on Ray: one persistent actor for each processor slot, on this machine or a cluster.

A model that is sent to many clients goes into Ray's object store once, whatever each of them is told beside it. Each
actor works off a batch of clients and streams the replies back; batches shrink towards the end of a round, so that no
actor is left with a long queue while others idle. A dead actor is replaced and its unanswered clients are tried again,
one at a time; who dies twice by itself is given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata

from shared_models.faults import Fault
from shared_models.flower_messages import error_reply, from_buffers
from simulations.local_grid import LocalGrid
from simulations.ray_workers import RayError, RayOptions, RayWorkers, ray
from simulations.worker import DEFAULT_APP

_WORTHWHILE = 0.03  # seconds of work that a batch should hold at least: it costs a few milliseconds itself
_PLACE = ConfigRecord()  # keeps an array record's place while it travels by itself: clients digest a request in order


@dataclass(frozen=True, slots=True)
class _Task:
    """One message on its way to one client."""

    metadata: Metadata
    arrays: Any  # reference to its arrays in the object store, which others share
    content: RecordDict  # all of it but the arrays, whose places are kept
    client: str
    state: RecordDict
    company: tuple[str, ...]  # who may train together with it
    alone: bool = False  # of those that a dead actor left unanswered: which of them it died of is not known
    died: bool = False  # by itself, once


@dataclass
class _Slot:
    """An actor and what it is doing."""

    actor: Any
    starting: Any = None  # answers once a new actor stands; where a node has died there may be no place for it
    replies: Any = None  # its stream, while it works
    queue: deque[_Task] | None = None  # tasks of the batch not yet answered, in order
    size: int = 0  # of the batch
    begun: float = 0.0


class RayGrid(LocalGrid):
    """Virtual clients on Ray actors.

    Args:
        clients: stable ids, in order.
        options: how to use Ray.
        run_id, app, config, log, together: as in `InlineGrid`; workers on machines without the log's folder use their
            stderr.
        workers: actors that were started before, with the same options and app; closed with the grid.

    Raises:
        RunError: Ray can't be started, or the cluster can't be reached.
    """

    def __init__(
        self,
        clients: Sequence[str],
        *,
        config: Mapping[str, str],
        options: RayOptions | None = None,
        app: str = DEFAULT_APP,
        run_id: int = 1,
        log: Path | None = None,
        workers: RayWorkers | None = None,
        together: int = 1,
    ) -> None:
        super().__init__(clients, run_id=run_id, together=together)
        self._workers = workers or RayWorkers(options or RayOptions(), app=app, most=len(clients))
        self._workers.begin(run_id=run_id, config=config, log=log, most=len(clients))
        self._slots = [_Slot(actor) for actor in self._workers.actors]
        self._pace = 0.0  # seconds that a client took on average, in the last batches

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = deque(self._tasks(messages))
        try:
            while waiting or any(slot.replies is not None for slot in self._slots):
                for slot in self._slots:
                    if waiting and slot.replies is None and slot.starting is None:
                        self._give(slot, waiting)
                busy = {slot.replies: slot for slot in self._slots if slot.replies is not None}
                busy |= {slot.starting: slot for slot in self._slots if slot.starting is not None}
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                ready, _ = ray.wait(list(busy), num_returns=1, timeout=left, fetch_local=False)
                if not ready:
                    return
                slot = busy[ready[0]]
                if slot.starting is not None:  # or it has failed to, which its first task will show
                    slot.starting = None
                    continue
                replies = self._next(slot, waiting)
                while replies:  # none is held while the next one comes
                    yield replies.pop(0)
        finally:
            self._abandon()

    def _tasks(self, messages: Sequence[Message]) -> Iterator[_Task]:
        """One task a message; messages that hold the same arrays share one copy of them in the object store."""
        stored: dict[tuple[tuple[str, int], ...], Any] = {}
        parts: dict[int, tuple[Any, RecordDict]] = {}
        for message in messages:
            content = message.content
            if id(content) not in parts:
                arrays = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
                key = tuple((name, id(record)) for name, record in arrays.items())
                if key not in stored:
                    stored[key] = ray.put(arrays)
                rest = RecordDict({name: _PLACE if name in arrays else record for name, record in content.items()})
                parts[id(content)] = stored[key], rest
            node = message.metadata.dst_node_id
            client = self._clients[node]
            yield _Task(message.metadata, *parts[id(content)], client, self._states[client], self._companies[node])

    def _give(self, slot: _Slot, waiting: deque[_Task]) -> None:
        """Give an idle actor its next batch: half of its fair share of what is left, so the end is even; but no less
        than is worth the while, and no part of a company: another actor would train all of it again."""
        fair = max(1, len(waiting) // (2 * len(self._slots)))
        size = 1 if waiting[0].alone else max(fair, int(_WORTHWHILE / self._pace) if self._pace else 1)
        batch = [waiting.popleft()]
        while waiting and not batch[0].alone and waiting[0].arrays is batch[0].arrays and not waiting[0].alone:
            if len(batch) >= size and waiting[0].company is not batch[-1].company:
                break
            batch.append(waiting.popleft())
        slot.queue, slot.size, slot.begun = deque(batch), len(batch), time.monotonic()
        slot.replies = slot.actor.work.options(num_returns="streaming").remote(
            batch[0].arrays, [(task.metadata, task.content, task.client, task.state, task.company) for task in batch]
        )

    def _next(self, slot: _Slot, waiting: deque[_Task]) -> list[Message]:
        """The next replies of a working actor; none at the end of its batch, or when its clients are to be retried."""
        assert slot.queue is not None
        try:
            answers = ray.get(next(slot.replies))
        except StopIteration:
            self._pace = (time.monotonic() - slot.begun) / slot.size
            slot.replies = slot.queue = None
            return []
        except RayError:  # the actor died, or Ray lost what it had sent
            return self._replace(slot, waiting)
        for reply, state in answers:
            from_buffers(reply)
            self._states[slot.queue.popleft().client] = state
        return [reply for reply, _ in answers]

    def _replace(self, slot: _Slot, waiting: deque[_Task]) -> list[Message]:
        """Put a new actor in a dead one's place. Its clients are tried again; nothing of them had left it."""
        tasks, by_itself = list(slot.queue or ()), slot.size == 1
        slot.queue = slot.replies = None
        self._renew(slot)
        lost = [task for task in tasks if by_itself and task.died]
        if not lost:
            waiting.extend(replace(task, alone=True, died=by_itself) for task in tasks)
        return [error_reply(task.metadata, Fault.UNREACHABLE) for task in lost]

    def _abandon(self) -> None:
        """Stop what still runs (a deadline passed, or the caller left): its replies would be late."""
        for slot in self._slots:
            if slot.replies is not None:
                slot.replies = slot.queue = None
                self._renew(slot)

    def _renew(self, slot: _Slot) -> None:
        """Put a new actor in. It is given nothing before it stands, or clients would wait with it for a place."""
        slot.actor, slot.starting = self._workers.another(slot.actor)

    def close(self) -> None:
        self._workers.rest([slot.actor for slot in self._slots if slot.replies is None])
        self._slots = []
        self._workers.shut_down()
