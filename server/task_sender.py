"""The tasks of one stream on their way out: which is sent next, chunk by chunk, and which the site has already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from security.chunks import chunks
from security.frames import ACCEPTED, Answer, Begin, Chunk, Receipt, Taken
from server.link_post import Post
from server.mailbox import GoneError, TaskHead
from shared_models.faults import Fault

_LONGEST_SECONDS: Final = 365 * 86400.0  # that a frame can tell


class TaskSender:
    """Sends a site the tasks of the run that it has accepted, oldest first, each once a stream.

    Args:
        post: the link.
        site: its name.
        held: tasks that need not be sent.
        largest: bytes of the largest that the site takes.
        compression: what was agreed.
        wake: called when there may be something to send.
    """

    def __init__(
        self, post: Post, site: str, held: Iterable[str], *, largest: int, compression: str, wake: Callable[[], None]
    ) -> None:
        self._post = post
        self._site = site
        self._largest = largest
        self._compression = compression
        self._wake = wake
        self._accepted: tuple[str, str] | None = None  # run and plan, on this stream
        self._is_due = False
        self._handed = set(held)
        self._sending: TaskHead | None = None
        self._chunks: Iterator[Chunk] | None = None
        self._over: set[str] | None = None  # tasks that stopped waiting while the disk is looked at for some

    @property
    def handed(self) -> frozenset[str]:
        """Tasks that the site has, and hasn't answered."""
        return frozenset(self._handed)

    def look(self) -> None:
        """There may be new tasks."""
        self._is_due = True
        self._wake()

    def offer_changed(self) -> None:
        """Whatever was accepted is void."""
        self._accepted = None

    def answered(self, answer: Answer) -> None:
        """The site has answered the current offer."""
        self._accepted = (answer.run, answer.digest) if answer.code == ACCEPTED else None
        self.look()

    def settle(self, task: str) -> bool:
        """A task no longer waits for a reply; whether the site knows of it."""
        if self._over is not None:  # the disk may have been looked at before
            self._over.add(task)
        is_known = task in self._handed or self._is_sending(task)
        self._handed.discard(task)
        if self._is_sending(task):
            self._stop()
        return is_known

    async def take_receipt(self, receipt: Receipt) -> None:
        """A site says what became of a task. It need not; but then it needn't be sent the rest."""
        task = receipt.id
        if self._is_sending(task):
            self._stop()
        elif task not in self._handed:
            return
        if receipt.taken is Taken.DAMAGED:
            self._handed.discard(task)
            self.look()
            return
        self._handed.add(task)
        if receipt.taken in (Taken.UNASKED, Taken.TOO_LARGE):
            await self._refuse(task)

    async def next_frame(self) -> Begin | Chunk | None:
        """The next frame of the task on its way, or of the oldest that the site doesn't have; None if there is none."""
        if self._sending is None or self._chunks is None:
            return await self._begin()
        task, parts = self._sending, self._chunks
        try:
            chunk = await self._post.work(lambda: next(parts, None))
        except GoneError:  # it was recalled, and forgotten
            chunk = None
        if not self._is_sending(task.id):  # it was recalled meanwhile
            return None
        if chunk is None:
            self._stop()
        elif chunk.offset + (chunk.raw or len(chunk.data)) == task.size:
            self._hand_over(task)
        return chunk

    async def _begin(self) -> Begin | None:
        offer = self._post.offered
        if not self._is_due or offer is None or self._accepted != (offer.run, offer.digest):
            return None
        self._is_due = False
        mailbox = self._post.mailbox
        self._over = set()
        heads = await self._post.work(lambda: mailbox.open_tasks(self._site, offer.run))
        over, self._over = self._over, None
        for head in heads:
            if head.id in self._handed or head.id in over:
                continue
            if head.size > self._largest:
                await self._refuse(head.id)
                continue
            self._sending = head
            self._chunks = chunks(head.id, mailbox.payload(head.digest), self._compression)
            if head.size == 0:
                self._hand_over(head)
            self._wake()
            seconds = 0.0 if head.seconds is None else min(head.seconds, _LONGEST_SECONDS)
            return Begin(id=head.id, header=head.header, size=head.size, digest=head.digest, seconds=seconds)
        return None

    def _hand_over(self, task: TaskHead) -> None:
        """The last of a task is about to be sent: its reply may come at any time."""
        self._handed.add(task.id)
        self._stop()
        self._post.observer.task_sent(self._site, task.id, task.size)

    def _is_sending(self, task: str) -> bool:
        return self._sending is not None and self._sending.id == task

    def _stop(self) -> None:
        self._sending = self._chunks = None
        self.look()

    async def _refuse(self, task: str) -> None:
        """The site does not take a task."""
        mailbox = self._post.mailbox
        if await self._post.work(lambda: mailbox.refuse(task, self._site, int(Fault.UNREACHABLE))):
            self._post.changed()
