"""The mailbox's SQLite file: its tables, one writer at a time, readers beside it, errors without values.

Every commit is on the disk when it returns, but that of a reply's parts (`parts`): they need not be before the reply
is, and the commit that finishes it syncs them all, since they are in the same log.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from security.errors import RunError, UsageError

_PAGE: Final = 1 << 14  # with SQLite's usual 4 KiB large rows take several times as long to read
_LOG_PAGES: Final = (16 << 20) // _PAGE  # of the write-ahead log, before it is moved into the file
_FORMAT: Final = 1
_APPLICATION: Final = 0x5645494D  # "VEIM"

_SCHEMA: Final = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {_FORMAT};
CREATE TABLE nodes (number INTEGER PRIMARY KEY, site TEXT NOT NULL UNIQUE);
CREATE TABLE payloads (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used again: it may still be read
    kind INTEGER NOT NULL,          -- 0 incomplete or no longer needed, 1 of tasks, 2 of a reply
    digest BLOB NOT NULL,
    size INTEGER NOT NULL
);
CREATE UNIQUE INDEX payload_of_tasks ON payloads (digest) WHERE kind = 1;
CREATE TABLE parts (
    payload INTEGER NOT NULL,
    place INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (payload, place)
);
CREATE TABLE tasks (
    place INTEGER PRIMARY KEY,      -- in the order of asking
    id TEXT NOT NULL UNIQUE,
    site TEXT NOT NULL,
    run TEXT NOT NULL,
    kind TEXT NOT NULL,
    "group" TEXT NOT NULL,
    header BLOB NOT NULL,
    payload INTEGER NOT NULL,
    state INTEGER NOT NULL,
    settled INTEGER,                -- in the order of arrival
    fault INTEGER NOT NULL DEFAULT 0,
    reply_header BLOB,
    reply INTEGER
);
CREATE INDEX task_of_site ON tasks (site, state);
CREATE INDEX task_of_run ON tasks (run, kind, "group");
CREATE INDEX task_payload ON tasks (payload);
CREATE INDEX task_reply ON tasks (reply);
CREATE INDEX task_settled ON tasks (settled);
"""


class MailboxError(RunError):
    """The mailbox can't be read or written."""


class MailboxFile:
    """The open file. Every method may be called from any thread, and raises `MailboxError` if the disk fails.

    Args:
        path: of the file; made, for its owner alone, if there is none.

    Raises:
        UsageError: another kind of file is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        with _errors(path):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._durable = self._connect("FULL")
            self._parts = self._connect("NORMAL")
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Close the file. Whatever else is called afterwards fails."""
        with self.lock:
            self._closed = True
            for db in (self._parts, self._durable, *self._readers):
                db.close()
            self._readers.clear()

    @contextmanager
    def transaction(self, *, parts: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, one thread at a time; durable when it ends, unless it is `parts` of a reply."""
        with self.lock, _errors(self.path):
            self._check_open()
            db = self._parts if parts else self._durable
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else has meanwhile; it sees what was committed last."""
        with _errors(self.path):
            with self.lock:
                self._check_open()
                db = self._readers.pop() if self._readers else None
            if db is None:
                db = self._connect("FULL")
                db.execute("PRAGMA query_only = 1")
            try:
                yield db
            finally:
                with self.lock:
                    if self._closed:
                        db.close()
                    else:
                        self._readers.append(db)

    def rows(self, statement: str, given: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        """What a statement selects."""
        with self.reading() as db:
            return db.execute(statement, tuple(given)).fetchall()

    def _check_open(self) -> None:
        if self._closed:
            raise MailboxError(f"{self.path}: the mailbox is closed")

    def _prepare(self) -> None:
        (application,) = self._durable.execute("PRAGMA application_id").fetchone()
        (version,) = self._durable.execute("PRAGMA user_version").fetchone()
        (tables,) = self._durable.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if (application, version, tables) == (0, 0, 0):
            with self.transaction() as db:
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
        elif (application, version) != (_APPLICATION, _FORMAT):
            raise UsageError(f"{self.path}: is no mailbox of this version of Veil; move it away, or name another home")

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=60.0)
        db.execute(f"PRAGMA page_size = {_PAGE}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {4 * _LOG_PAGES * _PAGE}")
        return db


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, without their texts, which may hold values."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        what = getattr(error, "sqlite_errorname", type(error).__name__)
        raise MailboxError(
            f"{path}: the mailbox can't be read or written ({what}); look at the disk, then resume"
        ) from None
