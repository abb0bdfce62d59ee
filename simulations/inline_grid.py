"""A grid in this very process: one client after another. For tests, debugging, and machines without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flwr.app import Message, RecordDict

from simulations.local_grid import LocalGrid
from simulations.worker import DEFAULT_APP, Worker


class InlineGrid(LocalGrid):
    """Runs each client's app in the calling thread.

    Args:
        clients: stable ids, in order.
        plan_text: the resolved plan as TOML.
        app: where the ClientApp is.
        run_id, charge: as in `LocalGrid`.
        log: as in `Worker`.
    """

    def __init__(
        self,
        clients: Sequence[str],
        *,
        plan_text: str,
        app: str = DEFAULT_APP,
        run_id: int = 1,
        charge: Callable[[RecordDict], None] | None = None,
        log: Path | None = None,
    ) -> None:
        super().__init__(clients, run_id=run_id, charge=charge)
        self._worker = Worker(app, run_id, plan_text, log)

    def _deliver(self, messages: Sequence[Message], timeout: float | None) -> Iterator[Message]:
        deadline = None if timeout is None else time.monotonic() + timeout
        for message in messages:
            if deadline is not None and time.monotonic() > deadline:
                return
            client = self._clients[message.metadata.dst_node_id]
            reply, state = self._worker.handle(message.metadata, message.content, client, self._states[client])
            self._states[client] = state
            yield reply

    def close(self) -> None:
        """Nothing to give back."""
