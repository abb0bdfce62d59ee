"""A grid in this very process: one client after another. For tests, debugging, and machines without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flwr.app import Message

from client.books import Books, register
from simulations.local_grid import LocalGrid
from simulations.worker import DEFAULT_APP, Worker


class InlineGrid(LocalGrid):
    """Runs each client's app in the calling thread.

    Args:
        clients: stable ids, in order.
        run_id, together: as in `LocalGrid`.
        app, config, log: as in `Worker`.

    Raises:
        LedgerError, RunError: the ledger that `config` names can't be opened.
    """

    def __init__(
        self,
        clients: Sequence[str],
        *,
        config: Mapping[str, str],
        app: str = DEFAULT_APP,
        run_id: int = 1,
        log: Path | None = None,
        together: int = 1,
    ) -> None:
        super().__init__(clients, run_id=run_id, together=together)
        self._books = None
        if "ledger" in config:  # opened anew for each run: this process may have played another one in its place
            self._books = Books.of_simulation(Path(config["ledger"]))
            register(config["ledger"], self._books)
        self._worker = Worker(app, run_id, config, log)

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        asked = [(one.metadata, one.content, one.metadata.dst_node_id) for one in messages]
        told = (
            (head, content, self._clients[node], self._states[self._clients[node]], self._companies[node])
            for head, content, node in asked
        )
        clients = (self._clients[node] for _, _, node in asked)
        for answers in self._worker.answer(told, deadline=deadline):
            while answers:
                reply, self._states[next(clients)] = answers.pop(0)
                yield reply
                del reply  # or it would be held while the next client trains

    def close(self) -> None:
        if self._books is not None:
            self._books.ledger.close()
