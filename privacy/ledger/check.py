"""Is a ledger what it says it is? Everything is checked again from the entries alone, and every problem is named."""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from privacy.canonical_json import is_digest
from privacy.ledger.anchors import default_anchors, read_anchors
from privacy.ledger.chain import Chain
from privacy.ledger.entries import Anchor, DamageError, read_entry
from privacy.ledger.file import SQLITE_ERRORS, LedgerError, connect, resolved
from privacy.lifetime import SLACK, Account, Balance, LifetimeSpent, Limit


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        scope: where; None for the file as a whole.
        position: of the entry; None for the scope as a whole.
        what: is wrong.
    """

    scope: str | None = None
    position: int | None = None
    what: str

    def __str__(self) -> str:
        scope = "" if self.scope is None else f"scope {self.scope!r}, "
        position = "" if self.position is None else f"entry {self.position}, "
        return f"{scope}{position}".removesuffix(", ") + (": " if scope or position else "") + self.what


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """A balance, computed anew from the entries.

    Attributes:
        scope: whose.
        balance: that was charged.
        account: all that was charged.
        limit: under which the last charge was admitted; None if all charges were recovered.
        spent: what may be said of it under that limit; None without one.
    """

    scope: str
    balance: Balance
    account: Account
    limit: Limit | None
    spent: LifetimeSpent | None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What a check found.

    Attributes:
        problems: none, if all is well.
        heads: the newest entry of each scope, to be compared with anchors that others hold.
        balances: of all scopes.
    """

    problems: tuple[Problem, ...]
    heads: tuple[Anchor, ...]
    balances: tuple[Recomputed, ...]


def verify(path: Path, *, anchors: Path | None = None) -> list[Problem]:
    """Every problem of a ledger; none if all is well. Arguments as for `audit`."""
    return list(audit(path, anchors=anchors).problems)


def audit(path: Path, *, anchors: Path | None = None) -> Audit:
    """Check a whole ledger: the file, all chains, stored replies, anchors, and that no limit was overspent.

    A chain can't show by itself that its end was cut off, or that its owner wrote it anew: compare `heads` with what
    others hold.

    Args:
        path: of the ledger; it is not changed.
        anchors: the anchor file; by default the one beside the ledger, if there is one.
    """
    check = _Check()
    try:
        path = resolved(path)
        if anchors is None and default_anchors(path).exists():
            anchors = default_anchors(path)
        # First the anchors, then the file: another process may be writing.
        anchored = {} if anchors is None else check.anchors(anchors)
        connection = connect(path, durable=True, read_only=True)
    except LedgerError as error:
        check.report(None, None, str(error))
        return check.result()
    try:
        check.file(connection)
        check.entries(connection)
        check.replies(connection)
    finally:
        connection.close()
    check.places(anchored)
    check.limits()
    return check.result()


class _Check:
    def __init__(self) -> None:
        self._problems: list[Problem] = []
        self._chains: dict[str, Chain] = {}
        self._hashes: dict[str, dict[int, str]] = {}
        self._balances: list[Recomputed] = []

    def report(self, scope: str | None, position: object, what: object) -> None:
        place = position if isinstance(position, int) else None
        self._problems.append(Problem(scope=scope, position=place, what=str(what)))

    def result(self) -> Audit:
        heads = tuple(chain.head for chain in self._chains.values() if chain.head is not None)
        return Audit(problems=tuple(self._problems), heads=heads, balances=tuple(self._balances))

    def anchors(self, path: Path) -> dict[str, Anchor | None]:
        try:
            return read_anchors(path)
        except LedgerError as error:
            self.report(None, None, error)
            return {}

    def file(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("BEGIN")  # one moment for all that follows
            for (line,) in connection.execute("PRAGMA integrity_check"):
                if line != "ok":
                    self.report(None, None, f"SQLite: {line}")
        except SQLITE_ERRORS as error:
            self.report(None, None, f"SQLite: {error}")

    def entries(self, connection: sqlite3.Connection) -> None:
        scopes: list[object] = []
        try:
            scopes.extend(row[0] for row in connection.execute("SELECT DISTINCT scope FROM entries ORDER BY scope"))
        except SQLITE_ERRORS as error:
            self.report(None, None, f"not all scopes can be read: {error}")
        for scope in scopes:
            try:
                self._scope(connection, scope)
            except SQLITE_ERRORS as error:
                self.report(str(scope), None, f"not all entries can be read: {error}")

    def _scope(self, connection: sqlite3.Connection, scope: object) -> None:
        try:
            chain = Chain(scope)  # type: ignore[arg-type]
        except ValueError as error:
            self.report(ascii(scope), None, error)
            return
        self._chains[chain.scope] = chain
        hashes = self._hashes[chain.scope] = {}
        query = (
            "SELECT scope, position, kind, time, body, previous, hash FROM entries WHERE scope = ? ORDER BY position"
        )
        for row in connection.execute(query, (chain.scope,)):
            _, position, *_, digest = row
            for problem in _read(chain, row):
                self.report(chain.scope, position, problem)
            if type(position) is int and position >= 0 and is_digest(digest):
                # After a problem go on from what is there: the next entry is judged by this one.
                chain.head = Anchor(scope=chain.scope, position=position, hash=digest)
                hashes[position] = digest

    def replies(self, connection: sqlite3.Connection) -> None:
        missing = {scope: chain.stored_replies() for scope, chain in self._chains.items()}
        try:
            for scope, position in connection.execute("SELECT scope, position FROM imported"):
                if scope not in self._chains or position not in self._hashes[scope]:
                    self.report(ascii(scope), None, "is said to be imported up to an entry that is not there")
                    continue
                missing[scope] = {task: place for task, place in missing[scope].items() if place > position}
            for scope, task, reply in connection.execute("SELECT scope, task, reply FROM replies"):
                place = missing.get(scope, {}).pop(task, None)
                if place is None:
                    self.report(ascii(scope), None, "a reply is stored that no entry stores")
                elif (
                    not isinstance(reply, bytes) or sha256(reply).hexdigest() != self._chains[scope].tasks[task].sha256
                ):
                    self.report(scope, place, "its stored reply was changed")
        except SQLITE_ERRORS as error:
            self.report(None, None, f"not all stored replies can be read: {error}")
        for scope, tasks in missing.items():
            for place in tasks.values():
                self.report(scope, place, "its stored reply is missing")

    def places(self, anchored: dict[str, Anchor | None]) -> None:
        for scope, anchor in anchored.items():
            chain = self._chains.get(scope)
            if anchor is None:
                self.report(scope, None, "its anchor was lost")
            elif chain is not None and anchor in chain.acknowledged:
                continue
            elif self._hashes.get(scope, {}).get(anchor.position) != anchor.hash:
                self.report(scope, anchor.position, "is not the entry that was anchored: an old copy, or cut off")

    def limits(self) -> None:
        for scope, chain in self._chains.items():
            for balance in chain.balances():
                account, limit = chain.account(balance), chain.limits.get(balance)
                try:
                    spent = None if limit is None else limit.spent(account)
                except Exception as error:
                    self.report(
                        scope, None, f"what {_name(balance)} has spent can't be computed: {type(error).__name__}"
                    )
                    continue
                self._balances.append(
                    Recomputed(scope=scope, balance=balance, account=account, limit=limit, spent=spent)
                )
                # Recovered charges were made under limits that are lost.
                if limit is None or spent is None or chain.withdrawn or balance in chain.recovered:
                    continue
                if not (spent.epsilon <= limit.epsilon * (1 + SLACK) and spent.delta <= limit.delta * (1 + SLACK)):
                    self.report(
                        scope,
                        None,
                        f"{_name(balance)} has spent epsilon {spent.epsilon:.6g} at delta {spent.delta:g}, above the "
                        f"limit {limit.epsilon:g} at {limit.delta:g} it was charged under",
                    )


def _read(chain: Chain, row: tuple[object, ...]) -> Iterator[object]:
    try:
        entry, intact = read_entry(row)
    except DamageError as error:
        yield error
        return
    if not intact:
        yield "its hash is not that of its content"
    for step in (chain.check_place, chain.append):
        try:
            step(entry)
        except DamageError as error:
            yield error


def _name(balance: Balance) -> str:
    return f"{balance.unit} x {balance.trust}"
