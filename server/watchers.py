"""Who is told what a server does: the console, the log, the figures, the status. Each says what it cares about."""

from __future__ import annotations

from collections.abc import Sequence

from security.frames import Goodbye, Taken
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from shared_models.plan import Plan


class Watcher:
    """Is told of everything and says nothing. Methods are called from several threads and must not block."""

    # --- the server and its queue

    def serving(self, port: int) -> None:
        """The link is up."""

    def queued(self, entry: Entry) -> None:
        """A plan is in the queue."""

    def waiting(self, entry: Entry, text: str) -> None:
        """Sites are waited for; `text` says which and why."""

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        """The sites of a run are fixed."""

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        """A run is done, stopped or failed, as the entry says."""

    def warns(self, code: str, text: str, **fields: float | str) -> None:
        """The operator should do something; `code` and `fields` are for the log, `text` for people."""

    # --- one run (`server.observer.Observer`)

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The run begins, or goes on after `done` rounds."""

    def note(self, text: str) -> None:
        """Something to know."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and on disk."""

    # --- the link (`server.link_stream.LinkObserver`)

    def connected(self, site: str, software: str) -> None:
        """A site has come in."""

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        """A site's stream is over after so many seconds; `why` is None if the site or the network ended it."""

    def refused(self, site: str | None, why: Goodbye) -> None:
        """Somebody was not let in; `site` is the name in the certificate, if it is one of Veil's."""

    def answered(self, site: str, code: int) -> None:
        """A site has answered the offer."""

    def task_sent(self, site: str, task: str, size: int) -> None:
        """All of a task has been sent."""

    def reply_stored(self, site: str, task: str, size: int) -> None:
        """A reply is on the disk."""

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        """A reply was not taken."""

    def failed(self, site: str | None, where: str) -> None:
        """A stream ended by a mistake of the server's own: the kind of error and the line."""


class Watchers(Watcher):
    """Tells several, one after the other."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._all = tuple(watchers)

    def serving(self, port: int) -> None:
        for one in self._all:
            one.serving(port)

    def queued(self, entry: Entry) -> None:
        for one in self._all:
            one.queued(entry)

    def waiting(self, entry: Entry, text: str) -> None:
        for one in self._all:
            one.waiting(entry, text)

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        for one in self._all:
            one.begins(entry, plan, folder)

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        for one in self._all:
            one.ends(entry, folder)

    def warns(self, code: str, text: str, **fields: float | str) -> None:
        for one in self._all:
            one.warns(code, text, **fields)

    def started(self, plan: Plan, clients: int, done: int) -> None:
        for one in self._all:
            one.started(plan, clients, done)

    def note(self, text: str) -> None:
        for one in self._all:
            one.note(text)

    def round_done(self, record: RoundRecord) -> None:
        for one in self._all:
            one.round_done(record)

    def connected(self, site: str, software: str) -> None:
        for one in self._all:
            one.connected(site, software)

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        for one in self._all:
            one.disconnected(site, why, seconds)

    def refused(self, site: str | None, why: Goodbye) -> None:
        for one in self._all:
            one.refused(site, why)

    def answered(self, site: str, code: int) -> None:
        for one in self._all:
            one.answered(site, code)

    def task_sent(self, site: str, task: str, size: int) -> None:
        for one in self._all:
            one.task_sent(site, task, size)

    def reply_stored(self, site: str, task: str, size: int) -> None:
        for one in self._all:
            one.reply_stored(site, task, size)

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        for one in self._all:
            one.reply_refused(site, task, taken)

    def failed(self, site: str | None, where: str) -> None:
        for one in self._all:
            one.failed(site, where)
