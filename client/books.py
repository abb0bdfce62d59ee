"""A client's books: its ledger, and the identities that sign for it.

A simulation's are opened once for each process, by the name that the app is told. Most often that is the path of the
ledger's file; a simulation on machines that don't share a disk registers books under a name of its own. A deployed
site has one ledger and one identity (`client.site_books` finds them).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.policy import SitePolicy
from privacy.ledger import Ledger, LedgerError
from security.errors import RunError
from security.identity import Identity

_OWNERS = ".owners"  # beside a simulation's ledger: the secret that its clients' identities follow from
_SECRET_BYTES = 32


class Books:
    """A ledger and its owners.

    Args:
        ledger: kept open.
        secret: what the identity of each scope's owner is derived from, in a simulation.
        owner: who owns every scope, at a deployed site.
    """

    def __init__(self, ledger: Ledger, secret: bytes = b"", *, owner: Identity | None = None) -> None:
        if owner is None and not secret:
            raise ValueError("give a secret or an owner: somebody must sign")
        self.ledger = ledger
        self.secret = secret
        self._owner = owner
        self._begun: set[str] = set()
        self._owners: dict[str, Identity] = {}

    @classmethod
    def of_simulation(cls, path: Path) -> Books:
        """The books of a run's virtual clients, which `create_simulated` made.

        Raises:
            LedgerError: the ledger isn't there, is damaged or can't be written, or nobody can sign for it.
        """
        return cls(Ledger.open(path, durable=False), _read_secret(_secret_of(path)))

    def owner(self, scope: str) -> Identity:
        """Who signs for a scope."""
        if self._owner is not None:
            return self._owner
        if scope not in self._owners:
            self._owners[scope] = Identity.derive(self.secret, scope)
        return self._owners[scope]

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """As `Ledger.deferred`: in a simulation many clients' entries are written at once."""
        try:
            with self.ledger.deferred():
                yield
        except BaseException:
            self._begun.clear()
            raise

    def prepare(self, policy: SitePolicy) -> None:
        """Begin the policy's scope and write the policy down, where that has not been done.

        Raises:
            LedgerError: the ledger can't be relied on or written.
        """
        scope = policy.budget_scope
        if scope not in self._begun:
            self.ledger.open_scope(scope, owner=self.owner(scope).public_hex)
            self._begun.add(scope)
        # Each time: another process, or this one, may have worked under another policy since.
        if self.ledger.policy(scope) != policy.digest():
            self.ledger.set_policy(scope, policy.to_json(), policy.digest())


def create_simulated(path: Path) -> None:
    """Make a new ledger for a run's virtual clients, and the secret that their identities follow from.

    Raises:
        LedgerError: there is one already, or it can't be written.
        RunError: the secret can't be written.
    """
    Ledger.create(path, durable=False).close()
    secret = _secret_of(path)
    try:
        descriptor = os.open(secret, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"{secret}: can't be written ({error.strerror})") from error


def _secret_of(path: Path) -> Path:
    return path.with_name(path.name + _OWNERS)


def _read_secret(path: Path) -> bytes:
    try:
        secret = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"{path}: can't be read ({error.strerror}); without it nobody signs") from error
    if len(secret) != _SECRET_BYTES:
        raise LedgerError(f"{path}: is not the secret that was made with the ledger; without it nobody signs")
    return secret


_open: dict[tuple[str, int], Books] = {}  # by process: a fork must not use its parent's connection


def register(name: str, found: Books) -> None:
    """Have `books(name)` give these in this process."""
    _open[name, os.getpid()] = found


def books(name: str) -> Books:
    """The books of that name.

    Raises:
        LedgerError: the ledger isn't there, is damaged or can't be written; nothing may be trained without it.
    """
    key = name, os.getpid()
    if key not in _open:
        register(name, Books.of_simulation(Path(name)))
    return _open[key]


def put_away() -> None:
    """Close the ledgers that this process opened, so that SQLite leaves one file of each; they may be opened again."""
    for name, process in list(_open):
        found = _open.pop((name, process))
        if process == os.getpid():
            found.ledger.close()
