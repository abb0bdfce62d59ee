"""The replies of one stream on their way in: checked, spooled to the disk as they come, and receipted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from security.chunks import Assembly
from security.frames import Begin, Chunk, FrameError, Receipt, Taken
from server.link_post import Post
from server.mailbox import Spool
from shared_models.faults import Fault


class ReplyReceiver:
    """Takes in one reply at a time.

    Args:
        post: the link.
        site: whose replies.
        compression: what was agreed.
        tell: sends the site a receipt; returns when it has room for another.
        settled: told of each task that no longer waits for a reply.
    """

    def __init__(
        self,
        post: Post,
        site: str,
        *,
        compression: str,
        tell: Callable[[Receipt], Awaitable[None]],
        settled: Callable[[str], object],
    ) -> None:
        self._post = post
        self._site = site
        self._compression = compression
        self._tell = tell
        self._settled = settled
        self._assembly: Assembly | None = None
        self._spool: Spool | None = None
        self._is_recalled = False
        self._dropping: str | None = None  # a message that is not taken, while the site doesn't know yet

    def recall(self, task: str) -> None:
        """A task's time is over; if its reply is coming in, the rest of it is dropped."""
        if self._assembly is not None and self._assembly.begin.id == task:
            self._is_recalled = True

    async def begin(self, begin: Begin) -> None:
        """The head of a reply.

        Raises:
            FrameError: the one before is not complete.
        """
        if self._is_recalled:
            await self._give_up()
        if self._assembly is not None:
            raise FrameError("begin: the message before is not complete")
        self._dropping = None
        mailbox, limits = self._post.mailbox, self._post.limits
        if begin.size > limits.largest_message:
            fault = int(Fault.MALFORMED_REPLY)
            if await self._post.work(lambda: mailbox.refuse(begin.id, self._site, fault)):
                self._post.changed()
            await self._not_taken(begin.id, Taken.TOO_LARGE)
            return
        spool = await self._post.work(lambda: mailbox.begin_reply(begin.id, self._site, begin.header))
        if isinstance(spool, Taken):
            await self._not_taken(begin.id, spool)
            return
        self._assembly, self._spool = Assembly(begin, self._compression), spool
        if self._assembly.is_complete:
            await self._finish(self._assembly, spool)

    async def add(self, chunk: Chunk) -> None:
        """The next part of a reply.

        Raises:
            FrameError: it is out of place.
        """
        assembly, spool = self._assembly, self._spool
        if assembly is None or spool is None:
            if chunk.id != self._dropping:
                raise FrameError("chunk: of no message")
            return
        if self._is_recalled:
            await self._give_up()
            return
        mailbox = self._post.mailbox
        await self._post.work(lambda: mailbox.add_reply_chunk(spool, assembly.add(chunk)))
        if assembly.is_complete:
            await self._finish(assembly, spool)

    async def drop(self) -> None:
        """Drop what has come of a reply."""
        spool = self._spool
        self._forget()
        if spool is not None:
            mailbox = self._post.mailbox
            await self._post.work(lambda: mailbox.drop_reply(spool))

    async def _finish(self, assembly: Assembly, spool: Spool) -> None:
        task, mailbox = assembly.begin.id, self._post.mailbox
        if not assembly.is_sound:
            await self.drop()
            await self._not_taken(task, Taken.DAMAGED)
            return
        taken = await self._post.work(lambda: mailbox.finish_reply(spool))
        self._forget()
        if taken is not Taken.STORED:
            await self._not_taken(task, taken)
            return
        self._settled(task)
        self._post.observer.reply_stored(self._site, task, assembly.begin.size)
        self._post.changed()
        await self._tell(Receipt(id=task, taken=taken))

    async def _give_up(self) -> None:
        """The task was recalled whose reply is coming in."""
        assert self._assembly is not None
        task = self._assembly.begin.id
        await self.drop()
        await self._not_taken(task, Taken.UNASKED)

    async def _not_taken(self, task: str, taken: Taken) -> None:
        self._dropping = task
        if taken is not Taken.DAMAGED:
            self._settled(task)
        self._post.observer.reply_refused(self._site, task, taken)
        await self._tell(Receipt(id=task, taken=taken))

    def _forget(self) -> None:
        self._assembly, self._spool, self._is_recalled = None, None, False
