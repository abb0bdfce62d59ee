"""Entries on disk: transactions, chains kept up to date with the file, anchors moved after each write."""

import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakSet

from privacy.canonical_json import is_digest
from privacy.ledger.anchors import read_anchors, write_anchors
from privacy.ledger.chain import Chain
from privacy.ledger.entries import Anchor, DamageError, Entry, Kind, next_entry, read_entry, time_text
from privacy.ledger.file import SQLITE_ERRORS, LedgerError, connect, identity_of, sqlite_errors
from privacy.ledger.unwritten import DELETE_REPLY, INSERT_ENTRY, INSERT_IMPORTED, INSERT_REPLY, Unwritten

_COLUMNS = "scope, position, kind, time, body, previous, hash"
_LEAST = -(1 << 63)
_OUTER = ("BEGIN IMMEDIATE", "COMMIT", ("ROLLBACK",))
# Where SQLite is used in a process and in its fork, the fork believes it holds locks that only its parent has.
_stores: "WeakSet[Store]" = WeakSet()
_inherited: set[tuple[int, int]] = set()

_NESTED = ("SAVEPOINT part", "RELEASE part", ("ROLLBACK TO part", "RELEASE part"))


class Store:
    """An open file and what this process knows of it. One per `Ledger`, which holds the rules of use.

    Every method raises `LedgerError` if the file can't be relied on, or be written.
    """

    def __init__(
        self, path: Path, *, durable: bool, read_only: bool, anchors: Path | None, clock: Callable[[], datetime]
    ) -> None:
        self.path = path
        self._read_only = read_only
        self._anchors = anchors
        self._clock = clock
        self._process = os.getpid()
        self._lock = RLock()
        self._depth = 0
        self._chains: dict[str, Chain] = {}
        self._touched: set[str] = set()
        self._unwritten: Unwritten | None = None
        self._may_defer = not durable and not read_only and anchors is None
        if _inherited and identity_of(path) in _inherited:
            raise LedgerError(f"{path}: was open when this process was forked; close it before, or spawn the process")
        self._db = connect(path, durable=durable, read_only=read_only)
        try:
            self._identity = identity_of(path)
            _stores.add(self)
            if anchors is not None:
                self._check_anchor_file(anchors, read_only=read_only)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Close the file; an open transaction is undone."""
        with self._lock:
            if self._process == os.getpid():
                self._db.close()
                _stores.discard(self)

    def now(self) -> datetime:
        """The time of day."""
        return self._clock()

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self._depth > 0

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One thread at a time; SQLite's errors become ours."""
        self._check_process()
        with self._lock, sqlite_errors(self.path):
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, alone with the file; inside another, a part that can be undone by itself.

        After the outermost one the anchors are moved: what was written counts only when that is done.
        """
        self._check_process()
        if self._read_only:
            raise LedgerError(f"{self.path}: was opened for reading only; open it for writing")
        with self._lock:
            if self._unwritten is not None:
                with self._part(self._unwritten):
                    yield
                return
            outer = self._depth == 0
            begin, end, undo = _OUTER if outer else _NESTED
            if not outer and not self._db.in_transaction:
                raise LedgerError(f"{self.path}: an error has undone the whole batch; begin it again")
            with sqlite_errors(self.path):
                if outer and self._db.in_transaction:  # a signal struck just after an earlier begin
                    self._db.execute("ROLLBACK")
                self._db.execute(begin)
            self._depth += 1
            try:
                if outer and identity_of(self.path) != self._identity:
                    raise LedgerError(f"{self.path}: another file was put in its place; stop, and open it anew")
                yield
                with sqlite_errors(self.path):
                    self._db.execute(end)
            except BaseException:
                for scope in self._touched:
                    self._chains.pop(scope, None)
                with suppress(*SQLITE_ERRORS):
                    for statement in undo if self._db.in_transaction else ():
                        self._db.execute(statement)
                if outer:
                    self._touched.clear()
                raise
            finally:
                self._depth -= 1
            if outer:
                touched, self._touched = self._touched, set()
                self._move_anchors(touched)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Everything that is written inside reaches the file at the end, in one transaction, even after an error.

        Until then this thread alone has the file, in this process; others may write, but not to the same scopes: what
        they add to a scope after it was first used inside makes the end fail. An error that ended it early goes on,
        whether or not the end fails too.

        Raises:
            ValueError: the ledger waits for the disk, or has an anchor: then what is reserved must be there before
                data is touched. Or this is inside of a transaction, or of another `deferred`.
        """
        if not self._may_defer:
            raise ValueError("only a simulation's ledger may be written later")
        self._check_process()
        with self._lock:
            if self._depth > 0 or self._unwritten is not None:
                raise ValueError("a transaction is open")
            kept, written = Unwritten(), False
            try:
                self._unwritten = kept
                try:
                    yield
                except BaseException as error:  # whatever it was: what was reserved may have been used
                    try:
                        self._write_out(kept)
                        written = True
                    except LedgerError as second:
                        error.add_note(str(second))
                    raise
                self._write_out(kept)
                written = True
            finally:
                self._unwritten = None
                if not written:
                    self._forget_chains()
                self._touched.clear()

    @contextmanager
    def _part(self, kept: Unwritten) -> Iterator[None]:
        """A transaction of what isn't written yet: an error undoes its part alone."""
        first, before = len(kept), self._touched
        self._touched = set()
        self._depth += 1
        try:
            yield
        except BaseException:
            kept.undo(first)
            self._forget_chains()
            raise
        finally:
            self._touched |= before
            self._depth -= 1

    def _write_out(self, kept: Unwritten) -> None:
        """Write what isn't written yet: all or nothing."""
        if len(kept) == 0:
            return
        with sqlite_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if identity_of(self.path) != self._identity:
                    raise LedgerError(f"{self.path}: another file was put in its place; stop, and open it anew")
                try:
                    kept.write(self._db)
                except sqlite3.IntegrityError:
                    raise LedgerError(
                        f"{self.path}: another process has written for the same clients meanwhile; its entries stand, "
                        "and what was done here is undone"
                    ) from None
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(*SQLITE_ERRORS):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                raise

    def _forget_chains(self) -> None:
        """Those that were written to are read anew: from the file, and from what isn't written yet."""
        for scope in self._touched:
            self._chains.pop(scope, None)
            if self._unwritten is not None:
                self._unwritten.seen.discard(scope)

    def _put(self, scope: str, statement: str, values: tuple[object, ...]) -> None:
        """A statement of the open transaction."""
        if self._unwritten is None:
            self._db.execute(statement, values)
        else:
            self._unwritten.put(scope, statement, values)

    def read_anew(self, scope: str) -> list[Entry]:
        """Every entry of a scope, its chain verified from the first one on."""
        self._chains.pop(scope, None)
        if self._unwritten is not None:
            self._unwritten.seen.discard(scope)
        found: list[Entry] = []
        self.chain(scope, found.append)
        return found

    def chain(self, scope: str, seen: Callable[[Entry], None] | None = None) -> Chain:
        """The scope's state with every entry there is, verified: at first use all of them, then what is new.

        Args:
            scope: its name.
            seen: is given each entry that is read.

        Raises:
            ValueError: if that can't name a scope.
        """
        known, kept = self._chains.get(scope), self._unwritten
        if known is not None and kept is not None and scope in kept.seen:
            return known
        # The anchor before the entries: another process may write an entry and its anchor at any time.
        anchor = self._anchored(scope) if known is None else None
        chain = known or Chain(scope)
        head = chain.head
        query = f"SELECT {_COLUMNS} FROM entries WHERE scope = ? AND position >= ? ORDER BY position"  # noqa: S608
        position: object = None
        try:
            with closing(self._db.execute(query, (scope, _LEAST if head is None else head.position))) as rows:
                if head is not None:
                    row = next(rows, None)
                    if row is None or (row[1], row[6]) != (head.position, head.hash):
                        raise DamageError(f"entry {head.position} was changed or removed while the ledger was in use")
                for row in itertools.chain(rows, () if kept is None else kept.entries(scope)):
                    position = row[1]
                    entry = chain.read(row)
                    if seen is not None:
                        seen(entry)
        except DamageError as error:
            self._chains.pop(scope, None)
            raise self._damaged(scope, position, error) from error
        if anchor is not None and not self.holds(chain, anchor):
            raise self._cut(anchor)
        self._chains[scope] = chain
        if kept is not None:
            kept.seen.add(scope)
        return chain

    def opened(self, scope: str) -> tuple[Chain, Anchor]:
        """The state of a scope that must have begun, and its newest entry's place."""
        chain = self.chain(scope)
        if chain.head is None:
            raise LedgerError(f"{self.path}: has no scope {scope!r}; `veil ledger show` lists those it has")
        return chain, chain.head

    def scopes(self) -> tuple[str, ...]:
        """All scopes, by name."""
        found = {row[0] for row in self._db.execute("SELECT DISTINCT scope FROM entries")}
        return tuple(sorted(found if self._unwritten is None else found | self._unwritten.scopes()))

    def entries(self, scope: str, first: int, last: int) -> list[Entry]:
        """Some of a scope's entries."""
        query = f"SELECT {_COLUMNS} FROM entries WHERE scope = ? AND position BETWEEN ? AND ? ORDER BY position"  # noqa: S608
        rows = self._db.execute(query, (scope, first, last)).fetchall()
        if self._unwritten is not None:
            rows += self._unwritten.entries(scope, first, last)
        found = []
        for row in rows:
            try:
                entry, intact = read_entry(row)
                if not intact:
                    raise DamageError("its hash is not that of its content")
            except DamageError as error:
                raise self._damaged(scope, row[1], error) from error
            found.append(entry)
        return found

    def append(self, chain: Chain, kind: Kind, body: Mapping[str, Any]) -> Anchor:
        """One more entry, in a transaction. Raises ValueError if it doesn't fit what came before."""
        self._touched.add(chain.scope)  # first, so that a chain whose entry was not written is read anew
        entry = next_entry(chain.head, chain.scope, kind, time_text(self.now()), body)
        chain.append(entry)
        self._put(chain.scope, INSERT_ENTRY, entry.row())
        return entry.anchor

    def import_entry(self, entry: Entry) -> None:
        """An entry of another ledger, checked, in a transaction. Raises DamageError."""
        self._touched.add(entry.scope)
        self.chain(entry.scope).read(entry.row())
        self._put(entry.scope, INSERT_ENTRY, entry.row())

    def end_import(self, anchor: Anchor) -> None:
        """Up to here the scope's replies are elsewhere."""
        self._put(anchor.scope, INSERT_IMPORTED, (anchor.scope, anchor.position))

    def store_reply(self, scope: str, task: str, reply: bytes) -> None:
        """Keep a reply, in the transaction of its commit entry."""
        self._put(scope, INSERT_REPLY, (scope, task, reply))

    def drop_reply(self, scope: str, task: str) -> None:
        """Let go of a reply."""
        self._put(scope, DELETE_REPLY, (scope, task))

    def reply(self, chain: Chain, task: str) -> bytes | None:
        """A committed task's reply, checked against its commit entry; None if it is no longer kept."""
        state = chain.tasks[task]
        if not chain.stores(task):
            return None
        query = "SELECT reply FROM replies WHERE scope = ? AND task = ?"
        unwritten = None if self._unwritten is None else self._unwritten.reply(chain.scope, task)
        row = self._db.execute(query, (chain.scope, task)).fetchone() if unwritten is None else (unwritten,)
        if row is None:
            imported = self._db.execute("SELECT position FROM imported WHERE scope = ?", (chain.scope,)).fetchone()
            if imported is not None and state.committed is not None and state.committed <= imported[0]:
                return None
            raise self._damaged(chain.scope, state.committed, DamageError("its reply is missing"))
        reply = row[0]
        if not isinstance(reply, bytes) or sha256(reply).hexdigest() != state.sha256:
            raise self._damaged(chain.scope, state.committed, DamageError("its reply was changed"))
        return reply

    def anchor_at(self, chain: Chain, position: int) -> Anchor:
        """The place of an entry that the chain has."""
        if chain.head is not None and position == chain.head.position:
            return chain.head
        unwritten = None if self._unwritten is None else self._unwritten.anchor(chain.scope, position)
        if unwritten is not None:
            return unwritten
        query = "SELECT hash FROM entries WHERE scope = ? AND position = ?"
        row = self._db.execute(query, (chain.scope, position)).fetchone()
        if row is None or not is_digest(row[0]):
            raise self._damaged(chain.scope, position, DamageError("it was removed while the ledger was in use"))
        return Anchor(scope=chain.scope, position=position, hash=row[0])

    def holds(self, chain: Chain, anchor: Anchor) -> bool:
        """Whether the chain has that hash at that position, or a recovery took it up."""
        if anchor in chain.acknowledged:
            return True
        if chain.head is None or anchor.position > chain.head.position:
            return False
        return self.anchor_at(chain, anchor.position) == anchor

    def _anchored(self, scope: str) -> Anchor | None:
        anchors = {} if self._anchors is None else read_anchors(self._anchors)
        if anchors.get(scope, ...) is None:
            raise LedgerError(f"{self._anchors}, scope {scope!r}: its anchor was lost; run `veil ledger recover`")
        return anchors.get(scope)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise ValueError("this ledger was opened before a fork: open it in the new process")

    def _check_anchor_file(self, anchors: Path, *, read_only: bool) -> None:
        with self.reading():
            used = self._db.execute("SELECT 1 FROM entries LIMIT 1").fetchone() is not None
        if used or anchors.exists():
            read_anchors(anchors)
        elif not read_only:
            write_anchors(anchors, {})

    def _move_anchors(self, scopes: set[str]) -> None:
        if self._anchors is None or not scopes:
            return
        with sqlite_errors(self.path):
            # Under the lock again, so that of two processes the later one writes the later anchor.
            self._db.execute("BEGIN IMMEDIATE")
            try:
                anchors = read_anchors(self._anchors)
                for scope in scopes:
                    chain, head = self.opened(scope)
                    anchor = anchors.get(scope)
                    if anchor is not None and not self.holds(chain, anchor):
                        raise self._cut(anchor)
                    anchors[scope] = head
                write_anchors(self._anchors, anchors)
            finally:
                self._db.execute("ROLLBACK")

    def _damaged(self, scope: str, position: object, error: DamageError) -> LedgerError:
        place = f"{self.path}, scope {scope!r}" + ("" if position is None else f", entry {position}")
        return LedgerError(f"{place}: {error}; restore a backup and run `veil ledger recover`")

    def _cut(self, anchor: Anchor) -> LedgerError:
        return LedgerError(
            f"{self.path}, scope {anchor.scope!r}: entry {anchor.position} is not the one that was anchored: the "
            "ledger is an old copy, was cut off, or was rewritten; run `veil ledger recover`"
        )


def _remember_open_files() -> None:
    _inherited.update(store._identity for store in list(_stores))
    _stores.clear()


os.register_at_fork(after_in_child=_remember_open_files)
