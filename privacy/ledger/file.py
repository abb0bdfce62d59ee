"""The file a ledger lives in: SQLite with a write-ahead log, opened so that what can be wrong is found first."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from security.errors import RunError

APPLICATION_ID = 0x5645494C  # "VEIL"
BUSY_SECONDS = 60.0

# Of a damaged file SQLite quotes names that are no text any more, and Python fails to decode the message.
SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)

# Statements from one schema version to the next: a file's version is how many of these steps it has been through.
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE entries (
            scope TEXT NOT NULL,
            position INTEGER NOT NULL,
            kind TEXT NOT NULL,
            time TEXT NOT NULL,
            body TEXT NOT NULL,
            previous TEXT NOT NULL,
            hash TEXT NOT NULL,
            PRIMARY KEY (scope, position)
        ) WITHOUT ROWID""",
        """CREATE TABLE replies (
            scope TEXT NOT NULL,
            task TEXT NOT NULL,
            reply BLOB NOT NULL,
            PRIMARY KEY (scope, task)
        )""",
        """CREATE TABLE imported (
            scope TEXT NOT NULL PRIMARY KEY,
            position INTEGER NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries
            BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END""",
        """CREATE TRIGGER entries_are_not_deleted BEFORE DELETE ON entries
            BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END""",
    ),
)


class LedgerError(RunError):
    """A ledger that can't be relied on, or not be written. Nothing may be trained on it."""


@contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """Turns SQLite's errors into `LedgerError`s that say what to do."""
    try:
        yield
    except SQLITE_ERRORS as error:
        raise LedgerError(f"{path}: {_advice(error)}") from error


def create_file(path: Path) -> None:
    """Make an empty ledger: whole, or not at all, and never over another file.

    Raises:
        LedgerError: if something is there already, or can't be written.
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.unlink(missing_ok=True)
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        try:
            with sqlite_errors(new):
                connection = sqlite3.connect(new, isolation_level=None)
                try:
                    connection.execute("PRAGMA synchronous = OFF")  # once, at the end
                    _journal(connection, new)
                    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    _migrate(connection)
                finally:
                    connection.close()  # moves the log into the file
            sync(new)
            _publish(new, path)
        finally:
            new.unlink(missing_ok=True)
        sync(path.parent)
    except FileExistsError:
        raise LedgerError(f"{path}: exists already; open it, or name another file for a new ledger") from None
    except OSError as error:
        raise LedgerError(f"{path}: can't make a ledger here ({error.strerror}); name another file") from error


def remove_file(path: Path) -> None:
    """Remove a ledger that was made a moment ago and came to nothing."""
    for suffix in ("", "-wal", "-shm"):
        with suppress(OSError):
            path.with_name(path.name + suffix).unlink()


def connect(path: Path, *, durable: bool, read_only: bool) -> sqlite3.Connection:
    """Open a ledger's file.

    Args:
        path: of the file itself, no link.
        durable: whether each commit waits for the disk; without it a power failure may undo the newest commits, but
            no crash of a process does.
        read_only: neither the file nor its log is changed.

    Raises:
        LedgerError: if it is missing, empty, damaged, of a newer Veil, no ledger, or not to be written.
    """
    _check_is_file(path)
    with sqlite_errors(path):
        connection = _open(path, read_only=read_only)
        try:
            # What is read is checked, so undecodable text must arrive instead of stopping the reader.
            connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise LedgerError(f"{path}: is no ledger, or its beginning is damaged; restore it from a backup")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if not 0 < version <= len(_MIGRATIONS):
                state = "was written by a newer Veil; update Veil" if version > 0 else "is damaged; restore a backup"
                raise LedgerError(f"{path}: {state} (schema {version}, known: 1 to {len(_MIGRATIONS)})")
            if _is_cut(connection, path):
                raise LedgerError(f"{path}: was cut off; restore a backup and run `veil ledger recover`")
            if not read_only:
                _journal(connection, path)
                connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                connection.execute(f"PRAGMA fullfsync = {'ON' if durable else 'OFF'}")  # macOS: down to the platter
            if version < len(_MIGRATIONS):
                if read_only:
                    raise LedgerError(f"{path}: was written by an older Veil; open it once for writing")
                _migrate(connection)
            if _schema(connection) != _expected_schema(_MIGRATIONS):
                raise LedgerError(f"{path}: its tables are damaged or were changed; restore a backup")
        except BaseException:
            connection.close()
            raise
        return connection


def resolved(path: Path) -> Path:
    """The file behind a name: links are followed, so that one ledger has one log and one anchor.

    Raises:
        LedgerError: if a link leads in a circle.
    """
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise LedgerError(f"{path}: is a link that leads nowhere; name the ledger's file") from error


def identity_of(path: Path) -> tuple[int, int]:
    """Which file a name stands for now.

    Raises:
        LedgerError: if there is none.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise LedgerError(f"{path}: the ledger is gone ({error.strerror}); stop, and restore it") from error
    return found.st_dev, found.st_ino


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path, *, read_only: bool) -> sqlite3.Connection:
    uri = f"file:{quote(str(path))}?mode={'ro' if read_only else 'rw'}"
    try:
        return _connected(uri)
    except sqlite3.OperationalError:
        # On read-only media SQLite can't make its shared memory. Without a log there is nothing it would be for.
        if not read_only or _has_log(path):
            raise
        return _connected(uri + "&immutable=1")


def _connected(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA schema_version").fetchone()  # the first one to read the file
    except BaseException:
        connection.close()
        raise
    return connection


def _check_is_file(path: Path) -> None:
    try:
        found = path.stat()
    except OSError as error:
        raise LedgerError(f"{path}: no ledger here ({error.strerror}); restore it, or make a new one") from error
    if not path.is_file():
        raise LedgerError(f"{path}: is not a file; name a ledger's file")
    if found.st_size == 0:
        raise LedgerError(f"{path}: is empty, it was cut off; restore a backup and run `veil ledger recover`")
    if found.st_nlink > 1:
        # SQLite would keep a log for each name, and each would overwrite what the other had written.
        raise LedgerError(f"{path}: has {found.st_nlink} names (hard links); remove all but one")


def _is_cut(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is shorter than it says: SQLite looks only when it needs what is missing.

    The file must not be opened for this: when any descriptor of a file is closed, all locks that this process has on
    it are gone, those of an open ledger as well (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    page = connection.execute("PRAGMA page_size").fetchone()[0]
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    size = path.stat().st_size
    return not _has_log(path) and (size < page * pages or size % page != 0)


def _has_log(path: Path) -> bool:
    log = path.with_name(path.name + "-wal")
    return log.exists() and log.stat().st_size > 0


def _journal(connection: sqlite3.Connection, path: Path) -> None:
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise LedgerError(f"{path}: this file system can't hold a ledger (journal mode {mode}); use a local disk")


def _migrate(connection: sqlite3.Connection) -> None:
    """All that is left to do, in one transaction; another process may have done it meanwhile."""
    connection.execute("BEGIN EXCLUSIVE")
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        for step in _MIGRATIONS[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _publish(new: Path, path: Path) -> None:
    """Give the finished file its name, unless that is taken."""
    try:
        os.link(new, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        new.replace(path)


def _schema(connection: sqlite3.Connection) -> tuple[tuple[object, ...], ...]:
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
    return tuple(connection.execute(query))


@lru_cache(maxsize=4)
def _expected_schema(migrations: tuple[tuple[str, ...], ...]) -> tuple[tuple[object, ...], ...]:
    model = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for step in migrations:
            for statement in step:
                model.execute(statement)
        return _schema(model)
    finally:
        model.close()


def _advice(error: Exception) -> str:
    name = getattr(error, "sqlite_errorname", "") or ""
    for prefix, advice in _ADVICE.items():
        if name.startswith(prefix):
            return f"{advice} ({name})"
    return f"is damaged ({str(error)!a}); restore a backup and run `veil ledger recover`"


_ADVICE = {
    "SQLITE_FULL": "no room left, and nothing was written; free some and go on",
    "SQLITE_IOERR": "the disk can't be read or written; nothing was trained; check the disk",
    "SQLITE_READONLY": "can't be written; give its owner the right to write file and folder",
    "SQLITE_PERM": "can't be written; give its owner the right to write file and folder",
    "SQLITE_CANTOPEN": "can't be opened; check that file and folder may be read and written",
    "SQLITE_BUSY": f"another process has held it for {BUSY_SECONDS:g} s; end that process",
    "SQLITE_TOOBIG": "the reply is larger than a ledger can store",
    "SQLITE_CORRUPT": "is damaged; restore a backup and run `veil ledger recover`",
    "SQLITE_NOTADB": "is no ledger, or its beginning is damaged; restore a backup and run `veil ledger recover`",
    "SQLITE_CONSTRAINT_TRIGGER": "entries are never changed or deleted",
}
