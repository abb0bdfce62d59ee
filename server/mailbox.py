"""The server's messages on disk: tasks for sites, and the replies that came back, in one SQLite file.

What counts is that a reply which a site was told is stored is there after any crash, and that half of one never is. A
payload lies in parts of bounded size, so nobody has to hold it whole to send or receive it; the sites of a round share
one. A task is named by what is asked of whom (`server/link_grid.py`), so a server that was killed asks again in the
same words and finds what arrived meanwhile.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from security.frames import Taken
from server.mailbox_file import MailboxError, MailboxFile

PART: Final = 1 << 19  # bytes of a payload in one row
_AT_ONCE: Final = 64  # parts that one transaction deletes: others wait for it


class GoneError(MailboxError):
    """A payload is no longer needed, and was dropped while it was read."""


class State(IntEnum):
    """What has become of a task."""

    OPEN = 0
    """No reply yet."""
    REPLIED = 1
    """Its reply is on the disk."""
    RECALLED = 2
    """Its time is over."""
    REFUSED = 3
    """There will be no reply, and the task's `fault` says why."""


@dataclass(frozen=True)
class Payload:
    """What a message holds, and its SHA-256."""

    data: bytes = field(repr=False)
    digest: bytes

    @classmethod
    def of(cls, data: bytes) -> Self:
        """These bytes."""
        return cls(data, sha256(data).digest())


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked of one site.

    Attributes:
        id: its name, the same whenever the same is asked.
        site: who is asked.
        run: server's id of the run.
        kind: Flower's message type.
        group: Flower's group id: what belongs to one round.
        header: Flower's metadata.
        payload: content; tasks with one content share it.
        seconds: until its time is over, from now on; None for never.
    """

    id: str
    site: str
    run: str
    kind: str
    group: str
    header: bytes = field(repr=False)
    payload: Payload
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TaskHead:
    """A task without its payload.

    Attributes:
        id: its name.
        header: Flower's metadata.
        digest: SHA-256 of the payload.
        size: bytes of the payload.
        seconds: that are left for it; None for no deadline.
    """

    id: str
    header: bytes = field(repr=False)
    digest: bytes
    size: int
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A task that no longer waits for a reply. `fault` is a code if there is none, else 0."""

    id: str
    state: State
    fault: int


@dataclass(frozen=True, kw_only=True)
class StoredReply:
    """A reply, whole."""

    header: bytes = field(repr=False)
    payload: bytearray = field(repr=False)


class Spool:
    """A reply that is coming in. Its bytes count only once `Mailbox.finish_reply` says so."""

    def __init__(self, task: str, header: bytes) -> None:
        self.task = task
        self.header = header
        self.payload: int | None = None  # its rows, once there are some: a small reply is written in one go
        self.place = 0
        self.size = 0
        self.digest = sha256()
        self.rest = bytearray()


class Mailbox:
    """Tasks and replies. Every method may be called from any thread, and raises `MailboxError` if the disk fails.

    One process has a mailbox open at a time: the server's home is locked.
    """

    def __init__(self, file: MailboxFile, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._deadlines: dict[str, float] = {}
        self._nodes: dict[str, int] = {}

    @classmethod
    def open(cls, path: Path, *, clock: Callable[[], float] = time.monotonic) -> Self:
        """Open a mailbox, and make it if there is none. What a crash left half done is dropped.

        Args:
            path: of the file.
            clock: for deadlines, which last as long as this process.

        Raises:
            UsageError: another kind of file is there.
            MailboxError: it can't be read or written.
        """
        mailbox = cls(MailboxFile(path), clock)
        for (number,) in mailbox._file.rows("SELECT number FROM payloads WHERE kind = 0"):
            mailbox._drop(number)
        return mailbox

    def close(self) -> None:
        """Close the file. Whatever else is called afterwards fails."""
        self._file.close()

    # --- for who asks

    def node(self, site: str) -> int:
        """Flower's number for a site: given at first use, and the same ever after."""
        with self._file.lock:
            if site not in self._nodes:
                with self._file.transaction() as db:
                    db.execute("INSERT OR IGNORE INTO nodes (site) VALUES (?)", (site,))
                    (number,) = db.execute("SELECT number FROM nodes WHERE site = ?", (site,)).fetchone()
                self._nodes[site] = number + 1  # Flower's server is node 1
            return self._nodes[site]

    def post(self, tasks: Sequence[Task]) -> None:
        """Write tasks down, all or none. A task that is there already stays as it is, its reply too.

        One that was recalled or refused before is asked again. Its time runs anew in any case.
        """
        with self._file.transaction() as db:
            payloads: dict[bytes, int] = {}
            for task in tasks:
                again = db.execute("SELECT state FROM tasks WHERE id = ?", (task.id,)).fetchone()
                if again is None:
                    digest = task.payload.digest
                    if digest not in payloads:
                        payloads[digest] = _keep(db, task.payload)
                    db.execute(
                        'INSERT INTO tasks (id, site, run, kind, "group", header, payload, state) '
                        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                        (task.id, task.site, task.run, task.kind, task.group, task.header, payloads[digest], 0),
                    )
                elif again[0] in (State.RECALLED, State.REFUSED):
                    db.execute("UPDATE tasks SET state = 0, settled = NULL, fault = 0 WHERE id = ?", (task.id,))
            for task in tasks:
                self._deadlines.pop(task.id, None)
                if task.seconds is not None:
                    self._deadlines[task.id] = self._clock() + task.seconds

    def settled(self, ids: Collection[str]) -> list[Settled]:
        """Which of these tasks no longer wait, in the order in which they stopped waiting."""
        rows = self._file.rows(
            "SELECT id, state, fault FROM tasks WHERE state != 0 AND id IN (SELECT value FROM json_each(?)) "
            "ORDER BY settled",
            (json.dumps(list(ids)),),
        )
        return [Settled(id=name, state=State(state), fault=fault) for name, state, fault in rows]

    def reply(self, task: str) -> StoredReply | None:
        """A task's reply, whole; None if it has none."""
        with self._file.reading() as db:
            row = db.execute(
                "SELECT reply_header, payloads.number, payloads.digest, payloads.size FROM tasks "
                "JOIN payloads ON payloads.number = tasks.reply WHERE id = ?",
                (task,),
            ).fetchone()
            if row is None:
                return None
            header, number, digest, size = row
            payload, place = bytearray(size), 0  # filled part by part: it is never there twice
            for (data,) in db.execute("SELECT data FROM parts WHERE payload = ? ORDER BY place", (number,)):
                payload[place : place + len(data)] = data
                place += len(data)
        if sha256(payload).digest() != digest:
            raise MailboxError(
                f"{self._file.path}: a stored reply is damaged; restore the file, or remove it and ask anew"
            )
        return StoredReply(header=header, payload=payload)

    def waiting(self, run: str, kind: str) -> dict[str, str]:
        """The site of each open task of a run, by id; of one kind of message."""
        return dict(self._file.rows("SELECT id, site FROM tasks WHERE run = ? AND kind = ? AND state = 0", (run, kind)))

    def runs(self) -> list[str]:
        """The runs that have tasks."""
        return [run for (run,) in self._file.rows("SELECT DISTINCT run FROM tasks ORDER BY run")]

    def kinds(self, run: str) -> list[str]:
        """The kinds of message of a run's tasks."""
        return [
            kind for (kind,) in self._file.rows("SELECT DISTINCT kind FROM tasks WHERE run = ? ORDER BY kind", (run,))
        ]

    def recall(self, ids: Collection[str]) -> None:
        """End the time of those tasks that are still open: replies to them are no longer taken."""
        if not ids:
            return
        with self._file.transaction() as db:
            db.execute(
                f"UPDATE tasks SET state = ?, settled = {_NEXT} "  # noqa: S608
                "WHERE state = 0 AND id IN (SELECT value FROM json_each(?))",
                (State.RECALLED, json.dumps(list(ids))),
            )
            for name in ids:
                self._deadlines.pop(name, None)

    def refuse(self, task: str, site: str, fault: int) -> bool:
        """Note that a site's open task gets no reply, and why (a fault's code); whether there was one."""
        with self._file.transaction() as db:
            changed = db.execute(
                f"UPDATE tasks SET state = ?, fault = ?, settled = {_NEXT} "  # noqa: S608
                "WHERE state = 0 AND id = ? AND site = ?",
                (State.REFUSED, fault, task, site),
            )
            return changed.rowcount > 0

    def forget(self, run: str, *, kind: str | None = None, keep: int = 0) -> None:
        """Drop a run's tasks with their replies: all, or all of one kind but those of the newest `keep` groups."""
        chosen, given = "run = ?", [run]
        if kind is not None:
            chosen, given = "run = ? AND kind = ?", [run, kind]
        with self._file.transaction() as db:
            groups = db.execute(
                f'SELECT "group" FROM tasks WHERE {chosen} GROUP BY "group" ORDER BY min(place) DESC',  # noqa: S608
                given,
            ).fetchall()
            old = json.dumps([group for (group,) in groups[keep:]])
            gone = db.execute(
                f'DELETE FROM tasks WHERE {chosen} AND "group" IN (SELECT value FROM json_each(?)) '  # noqa: S608
                "RETURNING id, payload, reply",
                (*given, old),
            ).fetchall()
            for name, _, _ in gone:
                self._deadlines.pop(name, None)
            # Nobody may take up again what is about to be dropped.
            numbers = json.dumps([number for row in gone for number in row[1:] if number is not None])
            db.execute(
                "UPDATE payloads SET kind = 0 WHERE number IN (SELECT value FROM json_each(?)) "
                "AND NOT EXISTS (SELECT 1 FROM tasks WHERE payload = number OR reply = number)",
                (numbers,),
            )
            dropped = db.execute(
                "SELECT number FROM payloads WHERE kind = 0 AND number IN (SELECT value FROM json_each(?))", (numbers,)
            ).fetchall()
        for (number,) in dropped:
            self._drop(number)

    # --- for the link

    def open_tasks(self, site: str, run: str) -> list[TaskHead]:
        """What a site has yet to answer in a run, oldest first; tasks whose time is over are left out."""
        rows = self._file.rows(
            "SELECT id, header, digest, size FROM tasks JOIN payloads ON payloads.number = tasks.payload "
            "WHERE site = ? AND state = 0 AND run = ? ORDER BY place",
            (site, run),
        )
        now, found = self._clock(), []
        for name, header, digest, size in rows:
            deadline = self._deadlines.get(name)
            left = None if deadline is None else deadline - now
            if left is None or left > 0:
                found.append(TaskHead(id=name, header=header, digest=digest, size=size, seconds=left))
        return found

    def wanted(self, site: str, ids: Collection[str]) -> set[str]:
        """Which of these a site was asked for, and their time is not over: open, or answered."""
        rows = self._file.rows(
            "SELECT id FROM tasks WHERE site = ? AND state IN (0, 1) AND id IN (SELECT value FROM json_each(?))",
            (site, json.dumps(list(ids))),
        )
        return {name for (name,) in rows}

    def payload(self, digest: bytes) -> Iterator[bytes]:
        """A task's payload, part by part. Between two parts nothing is held or locked.

        Raises:
            GoneError: it is not there, or not any more.
        """
        found = self._file.rows("SELECT number, size FROM payloads WHERE digest = ? AND kind = 1", (digest,))
        if not found:
            raise GoneError(f"{self._file.path}: a message is not there any more")
        number, size = found[0]
        for place in range((size + PART - 1) // PART):
            part = self._file.rows("SELECT data FROM parts WHERE payload = ? AND place = ?", (number, place))
            if not part:
                raise GoneError(f"{self._file.path}: a message is not there any more")
            yield part[0][0]

    def begin_reply(self, task: str, site: str, header: bytes) -> Spool | Taken:
        """Make ready for a site's reply, or say why it isn't taken."""
        found = self._file.rows("SELECT state FROM tasks WHERE id = ? AND site = ?", (task, site))
        return self._unwanted(task, State(found[0][0]) if found else None) or Spool(task, header)

    def add_reply_chunk(self, spool: Spool, data: bytes) -> None:
        """Take in the next bytes of a reply. After an error the spool can only be dropped."""
        spool.digest.update(data)
        spool.size += len(data)
        spool.rest += data
        if len(spool.rest) >= PART:
            with self._file.transaction(parts=True) as db:
                payload = _spill(db, spool, PART)
            spool.payload = payload

    def finish_reply(self, spool: Spool) -> Taken:
        """Put a complete reply on the disk, durably, unless its task stopped waiting meanwhile.

        The spool is of no use afterwards; after an error it can only be dropped.
        """
        with self._file.lock:
            with self._file.transaction() as db:
                found = db.execute("SELECT state FROM tasks WHERE id = ?", (spool.task,)).fetchone()
                taken = self._unwanted(spool.task, State(found[0]) if found else None)
                if taken is None:
                    payload = _spill(db, spool, 1)
                    db.execute(
                        "UPDATE payloads SET kind = 2, digest = ?, size = ? WHERE number = ?",
                        (spool.digest.digest(), spool.size, payload),
                    )
                    db.execute(
                        f"UPDATE tasks SET state = ?, settled = {_NEXT}, reply_header = ?, reply = ? "  # noqa: S608
                        "WHERE id = ?",
                        (State.REPLIED, spool.header, payload, spool.task),
                    )
            if taken is None:
                spool.payload = None  # it is the task's now
                self._deadlines.pop(spool.task, None)
                return Taken.STORED
        self.drop_reply(spool)
        return taken

    def drop_reply(self, spool: Spool) -> None:
        """Drop what has come of a reply."""
        spool.rest.clear()
        payload, spool.payload = spool.payload, None
        if payload is not None:
            self._drop(payload)

    # --- inside

    def _unwanted(self, task: str, state: State | None) -> Taken | None:
        """Why a reply to such a task is not taken; None if it is."""
        if state is State.REPLIED:
            return Taken.KNOWN
        deadline = self._deadlines.get(task)
        is_late = deadline is not None and self._clock() >= deadline
        return Taken.UNASKED if state is not State.OPEN or is_late else None

    def _drop(self, payload: int) -> None:
        """Delete a payload that nobody needs, a few parts at a time."""
        while True:
            with self._file.transaction(parts=True) as db:
                gone = db.execute(
                    "DELETE FROM parts WHERE rowid IN (SELECT rowid FROM parts WHERE payload = ? LIMIT ?)",
                    (payload, _AT_ONCE),
                )
                if gone.rowcount < _AT_ONCE:
                    db.execute("DELETE FROM payloads WHERE number = ?", (payload,))
                    return


_NEXT: Final = "(SELECT coalesce(max(settled), 0) + 1 FROM tasks)"


def _keep(db: sqlite3.Connection, payload: Payload) -> int:
    """The number of a task's payload, which is written unless it is there."""
    found = db.execute("SELECT number FROM payloads WHERE digest = ? AND kind = 1", (payload.digest,)).fetchone()
    if found is not None:
        return int(found[0])
    number = _new_payload(db, 1, payload.digest, len(payload.data))
    view = memoryview(payload.data)
    db.executemany(
        "INSERT INTO parts (payload, place, data) VALUES (?, ?, ?)",
        ((number, place, view[start : start + PART]) for place, start in enumerate(range(0, len(view), PART))),
    )
    return number


def _spill(db: sqlite3.Connection, spool: Spool, least: int) -> int:
    """Write what a spool holds into rows, none shorter than `least`.

    Returns:
        The number of its payload, which counts once the transaction has ended.
    """
    payload = spool.payload if spool.payload is not None else _new_payload(db, 0, b"", 0)
    while len(spool.rest) >= least:
        db.execute(
            "INSERT INTO parts (payload, place, data) VALUES (?, ?, ?)", (payload, spool.place, spool.rest[:PART])
        )
        spool.place += 1
        del spool.rest[:PART]
    return payload


def _new_payload(db: sqlite3.Connection, kind: int, digest: bytes, size: int) -> int:
    number = db.execute("INSERT INTO payloads (kind, digest, size) VALUES (?, ?, ?)", (kind, digest, size)).lastrowid
    assert number is not None
    return number
