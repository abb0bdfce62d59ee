"""A grid that shows a strategy only the round's cohort.

Flower's strategies sample clients by themselves in `configure_train`, and wait in a loop while there are too few.
Behind this façade they see exactly the cohort that the plan drew, all of it connected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from security.errors import RunError


class CohortGrid(Grid):
    """Delegates to a grid, but lists only the given nodes. Messages are sent by the federation loop alone."""

    def __init__(self, grid: Grid, nodes: Sequence[int]) -> None:
        self._grid = grid
        self._nodes = tuple(nodes)

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise _not_by_a_strategy()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise _not_by_a_strategy()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise _not_by_a_strategy()


def _not_by_a_strategy() -> RunError:
    return RunError("a strategy may not send messages by itself: clients would be charged for rounds nobody counts")
