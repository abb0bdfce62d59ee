"""A ledger that workers on other machines use through the one process that has its file.

SQLite can't be shared over a network's disks. On a Ray cluster the books stay with the process that leads the run, in
an actor of their own, and each worker's ledger is a stand-in that forwards its calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client.books import Books, register
from privacy.ledger import LedgerError


class LedgerService:
    """Answers the calls of stand-ins; runs as an actor beside the ledger's file."""

    def __init__(self, path: str) -> None:
        self._books = Books.of_simulation(Path(path))

    def secret(self) -> bytes:
        """What the owners' identities follow from."""
        return self._books.secret

    def call(self, name: str, *args: Any, **named: Any) -> Any:
        """Call a method of the ledger; an iterator is answered as a list."""
        found = getattr(self._books.ledger, name)(*args, **named)
        return list(found) if isinstance(found, Iterator) else found


class RemoteLedger:
    """Forwards each method to a `LedgerService`; what it raises is raised here.

    A service that has died is a ledger that can't be relied on: `LedgerError`.
    """

    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **named: _answer(self._service.call.remote(name, *args, **named))


def use_remote(name: str, service: Any) -> None:
    """Have this process' clients keep their books at a service."""
    register(name, Books(RemoteLedger(service), _answer(service.secret.remote())))  # type: ignore[arg-type]


def _answer(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError:  # what the ledger raised, and of its kind
        raise
    except RayError as error:
        raise LedgerError("the process that has the ledger can't be reached; start the run again") from error
