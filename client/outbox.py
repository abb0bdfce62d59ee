"""The outbox: replies that the server doesn't have yet, and what the app remembers of each run, on the disk.

A reply and the app's state after it are one transaction: after a crash both are there or neither. A reply lies here
until the server says that it has it; whether it may leave is asked each time (`client/considering.py`). What is lost
with this file is lost for nobody's privacy: the ledger has charged for it, and gives the newest replies once more when
the server asks again.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Final, Self

from security.errors import RunError

_APPLICATION_ID: Final = 0x56454F42  # "VEOB"
_VERSION: Final = 1
_PART: Final = 1 << 19  # bytes of a row; SQLite holds no blob of more than 1 GB
_RUNS: Final = 4  # runs whose states are kept

_SCHEMA: Final = (
    """CREATE TABLE replies (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        plan TEXT NOT NULL,
        fields TEXT NOT NULL,
        header BLOB NOT NULL,
        size INTEGER NOT NULL,
        digest BLOB NOT NULL
    )""",
    # Of a reply by its id, of a state by "state:" and its run.
    """CREATE TABLE parts (
        owner TEXT NOT NULL,
        number INTEGER NOT NULL,
        data BLOB NOT NULL,
        PRIMARY KEY (owner, number)
    )""",
    """CREATE TABLE states (
        run TEXT NOT NULL PRIMARY KEY,
        used INTEGER NOT NULL
    ) WITHOUT ROWID""",
)

# Of a damaged file SQLite quotes names that are no text any more, and Python fails to decode the message.
_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)


class OutboxError(RunError):
    """An outbox that can't be relied on, or not be written.

    Attributes:
        passes: whether trying again later may help: the disk is full, or can't be read just now.
    """

    def __init__(self, text: str, *, passes: bool = False) -> None:
        super().__init__(text)
        self.passes = passes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """The head of a stored reply.

    Attributes:
        id: of the task that it answers.
        plan: digest of the plan under which it was made from data; empty if no data went into it.
        fields: what it holds, as `record.field`; of arrays the record alone.
        header: Flower's metadata.
        size: bytes of the payload.
        digest: SHA-256 of the payload.
    """

    id: str
    plan: str
    fields: tuple[str, ...]
    header: bytes
    size: int
    digest: bytes


class Outbox:
    """An open outbox. Any thread may use it; every method raises `OutboxError` where the file won't do."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._db = connection
        self._lock = RLock()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a site's outbox; it is made if there is none.

        Raises:
            OutboxError: it can't be read or written, is damaged, or is something else.
        """
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise OutboxError(
                f"{path}: can't be written ({error.strerror}); give its owner the right to write file and folder"
            ) from error
        with _errors(path):
            connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            try:
                _prepare(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(path, connection)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def store(
        self,
        reply_id: str,
        *,
        header: bytes,
        payload: bytes,
        plan: str = "",
        fields: Iterable[str] = (),
        run: str = "",
        state: bytes | None = None,
    ) -> None:
        """Bring a reply to the disk, with the app's state after it; only then it may be sent.

        Args:
            reply_id: of the task that it answers; another reply to it is replaced.
            header: Flower's metadata.
            payload: all of it.
            plan: as `Reply` has it.
            fields: as `Reply` has them.
            run: whose state it is.
            state: of the app; None leaves the one there is.
        """
        with self._transaction():
            self._forget(reply_id)
            self._db.execute(
                "INSERT INTO replies (id, plan, fields, header, size, digest) VALUES (?, ?, ?, ?, ?, ?)",
                (reply_id, plan, json.dumps([*fields]), header, len(payload), sha256(payload).digest()),
            )
            self._write_parts(reply_id, payload)
            if state is not None:
                self._write_state(run, state)

    def replies(self) -> tuple[Reply, ...]:
        """The heads of all stored replies, oldest first."""
        with self._reading():
            rows = self._db.execute(
                "SELECT id, plan, fields, header, size, digest FROM replies ORDER BY number"
            ).fetchall()
        return tuple(map(_reply, rows))

    def reply(self, reply_id: str) -> Reply | None:
        """The head of a stored reply, if it is there."""
        with self._reading():
            query = "SELECT id, plan, fields, header, size, digest FROM replies WHERE id = ?"
            row = self._db.execute(query, (reply_id,)).fetchone()
        return None if row is None else _reply(row)

    def payload(self, reply_id: str) -> Iterator[bytes]:
        """A reply's payload in parts, one at a time in memory; it ends early if the reply is dropped meanwhile."""
        return self._read_parts(reply_id)

    def drop(self, reply_id: str) -> None:
        """Let go of a reply: the server has it, or will not have it."""
        with self._transaction():
            self._forget(reply_id)

    def drop_other_plans(self, plan: str) -> tuple[str, ...]:
        """Let go of all replies that were made from data under other plans than this one; their ids."""
        with self._transaction():
            query = "SELECT id FROM replies WHERE plan NOT IN ('', ?)"
            others = tuple(row[0] for row in self._db.execute(query, (plan,)).fetchall())
            for reply_id in others:
                self._forget(reply_id)
        return others

    def state(self, run: str) -> bytes:
        """What the app remembers of a run; empty where it has none."""
        return b"".join(self._read_parts(_state_of(run)))

    # --- rows

    def _forget(self, reply_id: str) -> None:
        self._db.execute("DELETE FROM replies WHERE id = ?", (reply_id,))
        self._db.execute("DELETE FROM parts WHERE owner = ?", (reply_id,))

    def _write_parts(self, owner: str, data: bytes) -> None:
        view = memoryview(data)
        for number, start in enumerate(range(0, len(data), _PART)):
            self._db.execute("INSERT INTO parts VALUES (?, ?, ?)", (owner, number, view[start : start + _PART]))

    def _write_state(self, run: str, state: bytes) -> None:
        newest = self._db.execute("SELECT coalesce(max(used), 0) FROM states").fetchone()[0]
        self._db.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (run, newest + 1))
        self._db.execute("DELETE FROM parts WHERE owner = ?", (_state_of(run),))
        self._write_parts(_state_of(run), state)
        old = self._db.execute("SELECT run FROM states ORDER BY used DESC LIMIT -1 OFFSET ?", (_RUNS,)).fetchall()
        for (name,) in old:
            self._db.execute("DELETE FROM states WHERE run = ?", (name,))
            self._db.execute("DELETE FROM parts WHERE owner = ?", (_state_of(name),))

    def _read_parts(self, owner: str) -> Iterator[bytes]:
        number = 0
        while True:
            with self._reading():
                query = "SELECT data FROM parts WHERE owner = ? AND number = ?"
                row = self._db.execute(query, (owner, number)).fetchone()
            if row is None:
                return
            yield row[0]
            number += 1

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock, _errors(self.path):
            yield

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, _errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # of a full disk SQLite may have undone it already
                    self._db.execute("ROLLBACK")
                raise


def _reply(row: tuple[str, str, str, bytes, int, bytes]) -> Reply:
    name, plan, fields, header, size, digest = row
    return Reply(id=name, plan=plan, fields=tuple(json.loads(fields)), header=header, size=size, digest=digest)


def _state_of(run: str) -> str:
    return f"state:{run}"


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Check the file, or make its tables if it is new."""
    # One process writes each byte once: a rollback journal costs less than a log that is copied later.
    db.execute("PRAGMA journal_mode = TRUNCATE")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA fullfsync = ON")  # macOS: down to the platter
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("BEGIN IMMEDIATE")
    try:
        found = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        identity = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0 and identity == 0:
            for statement in _SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_VERSION}")
        elif identity != _APPLICATION_ID:
            raise OutboxError(f"{path}: is no outbox, or its beginning is damaged; {_MOVE}")
        elif version != _VERSION:
            raise OutboxError(f"{path}: was written by a newer Veil; update Veil (schema {version}, known: {_VERSION})")
        elif _flaws(db):
            raise OutboxError(f"{path}: is damaged; {_MOVE}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _flaws(db: sqlite3.Connection) -> bool:
    return db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok" or _tables(db) != set(_SCHEMA)


def _tables(db: sqlite3.Connection) -> set[str]:
    rows: Iterable[tuple[str]] = db.execute(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    )
    return {row[0] for row in rows}


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into `OutboxError`s that say what to do."""
    try:
        yield
    except _ERRORS as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        advice, passes = next(
            (found for prefix, found in _ADVICE.items() if name.startswith(prefix)), (f"is damaged; {_MOVE}", False)
        )
        raise OutboxError(f"{path}: {advice}" + (f" ({name})" if name else ""), passes=passes) from error


_MOVE: Final = "move it away and start again: what it held is not charged twice"
_RIGHTS: Final = "can't be written; give its owner the right to write file and folder"
_ADVICE: Final = {
    "SQLITE_FULL": ("no room left, and nothing was written; make room", True),
    "SQLITE_IOERR": ("the disk can't be read or written; check the disk", True),
    "SQLITE_BUSY": ("another process holds it; end that process", True),
    "SQLITE_READONLY": (_RIGHTS, False),
    "SQLITE_PERM": (_RIGHTS, False),
    "SQLITE_CANTOPEN": (_RIGHTS, False),
}
