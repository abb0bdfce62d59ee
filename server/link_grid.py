"""Flower's grid over the link: messages go to sites through the mailbox, replies come back out of it.

A message's id follows from what is asked of whom, so a server that was killed, and asks again in the same words, finds
the replies that are there already, and waits for the others. Queries are asked anew each time.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from security.errors import RunError
from security.frames import ACCEPTED, LARGEST_HEADER, PENDING
from server.link import LinkServer
from server.mailbox import Mailbox, Payload, Settled, State, Task
from shared_models.faults import Fault, fault_of
from shared_models.flower_messages import (
    act_as_server,
    error_reply,
    give_id,
    header_to_bytes,
    payload_to_bytes,
    reply_from_bytes,
)

_POLL_SECONDS: Final = 1.0  # for what comes not from the link: revocations that somebody wrote into a file
_KEPT_GROUPS: Final = 2  # of each kind of message; checkpoints go as far back
_AT_ONCE: Final = 16 << 20  # bytes of payloads that are written together


class GridStopped(RunError):
    """The grid was stopped while replies were waited for."""


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A message that waits for its reply."""

    site: str
    metadata: Metadata


class LinkGrid(Grid):
    """A grid whose clients are the sites of a link.

    The run must be on offer: no site gets a message of a run that it hasn't accepted.

    Args:
        link: how sites are reached.
        mailbox: the link's.
        run: server's id of the run, in hexadecimal, as it was offered.
        members: the sites that take part.
        deadline: seconds a site may take for a reply, where a message says nothing else.
    """

    def __init__(
        self, link: LinkServer, mailbox: Mailbox, *, run: str, members: Sequence[str], deadline: float
    ) -> None:
        self.run_id = int(hashlib.sha256(run.encode()).hexdigest()[:15], 16) + 1
        act_as_server(self.run_id)
        self._link = link
        self._mailbox = mailbox
        self._label = run
        self._deadline = deadline
        self._nodes = {site: mailbox.node(site) for site in members}
        self._sites = {node: site for site, node in self._nodes.items()}
        self._run = Run.create_empty(self.run_id)
        self._waiting: dict[str, Message] = {}
        self._stopped = threading.Event()
        for kind in filter(_is_query, mailbox.kinds(run)):  # of a server that was killed: nobody waits for them
            self._end_queries(kind)

    # --- what Veil's server asks for

    @property
    def client_nodes(self) -> Mapping[str, int]:
        """Node number of each member."""
        return self._nodes

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages, and yield the replies as they are stored.

        A member that has no more business here (revoked, off the roster, or refusing the plan) yields an error reply
        at once. After `timeout` seconds (None: the grid's deadline) what is missing is recalled, and nothing of it is
        taken any more.

        Raises:
            GridStopped: `stop` was called. What was asked stays open, for whoever resumes the run.
            ValueError: a message is for a node that is none of the members', or has no content; or the run is not on
                offer, so that nobody would get it.
        """
        offered = self._link.offered
        if offered is None or offered.run != self._label:
            raise ValueError("the run is not on offer: no site would get its messages")
        seconds = self._deadline if timeout is None else timeout
        asked = self._ask(messages, seconds)
        return self._replies(asked, time.monotonic() + seconds)

    def stop(self) -> None:
        """Make whoever waits for replies, now or later, raise `GridStopped`. May be called from any thread."""
        self._stopped.set()
        self._link.changed()

    # --- asking

    def _ask(self, messages: Iterable[Message], seconds: float) -> dict[str, _Asked]:
        """Write the messages into the mailbox, and tell the link; those that wait, by id."""
        self._check_running()
        asked: dict[str, _Asked] = {}
        batch = _Batch()
        content: RecordDict | None = None
        payload = Payload.of(b"")
        for message in messages:
            if message.content is not content or content is None:  # that of a round is one for all sites
                content, payload = message.content, Payload.of(payload_to_bytes(message))
            task = self._task(message, payload, seconds)
            asked[task.id] = _Asked(site=task.site, metadata=message.metadata)
            batch.add(task)
            if batch.size >= _AT_ONCE:
                self._post(batch)
                batch = _Batch()
        self._post(batch)
        for kind in sorted({item.metadata.message_type for item in asked.values()}):
            old = self._mailbox.waiting(self._label, kind)
            self._link.recall({task: site for task, site in old.items() if task not in asked})
            if not _is_query(kind):
                self._mailbox.forget(self._label, kind=kind, keep=_KEPT_GROUPS)
        return asked

    def _task(self, message: Message, payload: Payload, seconds: float) -> Task:
        metadata = message.metadata
        site = self._sites.get(metadata.dst_node_id)
        if site is None:
            raise ValueError("a message is for a node that is none of the members'")
        nonce = secrets.token_hex(16) if _is_query(metadata.message_type) else ""
        words = [self._label, site, metadata.message_type, metadata.group_id, payload.digest.hex(), nonce]
        name = give_id(message, hashlib.sha256(b"veil task 1\n" + json.dumps(words).encode()).hexdigest())
        header = header_to_bytes(metadata)
        if len(header) > LARGEST_HEADER:
            raise ValueError("a message's type or group id is too long")
        return Task(
            id=name,
            site=site,
            run=self._label,
            kind=metadata.message_type,
            group=metadata.group_id,
            header=header,
            payload=payload,
            seconds=seconds if math.isfinite(seconds) else None,
        )

    def _post(self, batch: _Batch) -> None:
        if batch.tasks:
            self._mailbox.post(batch.tasks)
            self._link.notify_tasks({task.site for task in batch.tasks})

    # --- waiting

    def _replies(self, asked: dict[str, _Asked], deadline: float) -> Iterator[Message]:
        kinds = {item.metadata.message_type for item in asked.values()}
        looked, departures = -math.inf, -1  # for members that need not be waited for: often enough, not always
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:  # first the end, then a last look: nothing comes in between
                    self._link.recall({task: item.site for task, item in asked.items()})
                for settled in self._mailbox.settled(asked):
                    self._check_running()
                    yield from self._reply(asked.pop(settled.id).metadata, settled)
                if left <= 0:
                    return
                if departures != self._link.departures or time.monotonic() - looked >= _POLL_SECONDS:
                    looked, departures = time.monotonic(), self._link.departures
                    for task in self._hopeless(asked):
                        item = asked.pop(task)
                        self._link.recall({task: item.site})
                        yield error_reply(item.metadata, Fault.UNREACHABLE)
                if not asked:
                    return
                self._check_running()
                self._wait(asked, departures, min(max(0.0, left), _POLL_SECONDS))
        finally:
            for kind in filter(_is_query, kinds):
                self._end_queries(kind)

    def _wait(self, asked: Mapping[str, _Asked], departures: int, seconds: float) -> None:
        """Until there is something to look at."""

        def news() -> bool:
            is_disturbed = self._stopped.is_set() or self._link.departures != departures
            return is_disturbed or bool(self._mailbox.settled(asked))

        self._link.wait(news, seconds)

    def _hopeless(self, asked: Mapping[str, _Asked]) -> list[str]:
        """Tasks of sites that need not be waited for."""
        answers = self._link.answers()
        return [
            task
            for task, item in asked.items()
            if self._link.barred(item.site) is not None or answers.get(item.site, ACCEPTED) not in (ACCEPTED, PENDING)
        ]

    def _reply(self, asked: Metadata, settled: Settled) -> Iterator[Message]:
        """What came of a task, if anything did. Nothing of it is kept here when the next one is read."""
        if settled.state is State.REFUSED:
            yield error_reply(asked, fault_of(settled.fault))
        elif settled.state is State.REPLIED:
            yield self._read(asked, settled.id)

    def _read(self, asked: Metadata, task: str) -> Message:
        stored = self._mailbox.reply(task)
        if stored is None:
            raise RunError("a reply was forgotten while it was waited for; resume the run")
        try:
            return reply_from_bytes(asked, stored.payload)
        except ValueError:
            return error_reply(asked, Fault.MALFORMED_REPLY)

    def _end_queries(self, kind: str) -> None:
        self._link.recall(self._mailbox.waiting(self._label, kind))
        self._mailbox.forget(self._label, kind=kind)

    def _check_running(self) -> None:
        if self._stopped.is_set():
            raise GridStopped("the run was stopped; resume it later")

    # --- Flower's interface

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._sites)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; they are sent when their replies are asked for."""
        ids = []
        for message in messages:
            ids.append(give_id(message))
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Send queued messages and return all their replies."""
        messages = [self._waiting.pop(message_id) for message_id in message_ids if message_id in self._waiting]
        return list(self.stream(messages))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.stream(messages, timeout=timeout))


@dataclass
class _Batch:
    """Tasks that are written together, and the bytes of their payloads."""

    tasks: list[Task] = field(default_factory=list)
    size: int = 0

    def add(self, task: Task) -> None:
        if not self.tasks or self.tasks[-1].payload is not task.payload:
            self.size += len(task.payload.data)
        self.tasks.append(task)


def _is_query(kind: str) -> bool:
    return kind.partition(".")[0] == "query"
