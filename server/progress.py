"""How far the current run is, within a round too: asked while it goes on, from other threads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from server.watchers import Watcher
from shared_models.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Now:
    """The current run at one moment.

    Attributes:
        run: what it is called on the link.
        round, rounds: that are over, and of the plan.
        phase: what sites were last asked for: train, evaluate or a query; None before.
        asked, answered: how many sites were asked for that, and have answered.
        asked_at: when, by the monotonic clock.
        metric: of the newest model that was judged, and its value.
        epsilon: largest that a site has spent in this run.
        waiting: who is waited for, before the run begins.
    """

    run: str
    round: int = 0
    rounds: int = 0
    phase: str | None = None
    asked: int = 0
    answered: int = 0
    asked_at: float = 0.0
    metric: tuple[str, float] | None = None
    epsilon: float | None = None
    waiting: str | None = None


class Progress(Watcher):
    """Keeps the newest figures of the current run. Each change puts a new value in place of the old one."""

    def __init__(self) -> None:
        self.now: Now | None = None
        self._metric = ""

    def waiting(self, entry: Entry, text: str) -> None:
        self.now = Now(run=entry.run, waiting=text)

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        self._metric = plan.evaluation.metric
        self.now = Now(run=entry.run, rounds=plan.federation.rounds)
        lines = folder.read_metrics()
        for line in lines[-1:]:
            self._take(int(line["round"]), line.get("evaluation"), line.get("epsilon_max"))

    def started(self, plan: Plan, clients: int, done: int) -> None:
        self._change(round=done)

    def round_done(self, record: RoundRecord) -> None:
        self._take(record.round, record.evaluation, record.epsilon_max)

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        self.now = None

    def asks(self, phase: str, count: int) -> None:
        """So many sites are asked for something."""
        self._change(phase=phase, asked=count, answered=0, asked_at=time.monotonic())

    def hears(self) -> None:
        """One of them has answered."""
        now = self.now
        if now is not None:
            self._change(answered=now.answered + 1)

    def _take(self, number: int, evaluation: Mapping[str, float] | None, epsilon: float | None) -> None:
        value = (evaluation or {}).get(self._metric)
        self._change(round=number, epsilon=epsilon, **({} if value is None else {"metric": (self._metric, value)}))

    def _change(self, **changes: object) -> None:
        if self.now is not None:
            self.now = replace(self.now, **changes)  # type: ignore[arg-type]


class RunGrid(Protocol):
    """A grid that can be stopped from another thread."""

    @property
    def client_nodes(self) -> Mapping[str, int]:
        """Node number of each member."""
        ...

    @property
    def run(self) -> Run:
        """Flower's run."""
        ...

    def set_run(self, run: Run) -> None:
        """Flower's."""
        ...

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Flower's."""
        ...

    def get_node_ids(self) -> Iterable[int]:
        """Flower's."""
        ...

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Flower's."""
        ...

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Flower's."""
        ...

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield their replies as they arrive."""
        ...

    def stop(self) -> None:
        """Have `stream` raise `GridStopped`, now or when it is next called."""
        ...


class WatchedGrid(Grid):
    """Delegates to a run's grid, and counts who was asked and who has answered."""

    def __init__(self, grid: RunGrid, progress: Progress) -> None:
        self._grid = grid
        self._progress = progress

    @property
    def client_nodes(self) -> Mapping[str, int]:
        """Node number of each client id."""
        return self._grid.client_nodes

    def stream(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send messages and yield the replies as they arrive."""
        sent = list(messages)
        if sent:
            self._progress.asks(sent[0].metadata.message_type, len(sent))
        for reply in self._grid.stream(sent, timeout=timeout):
            self._progress.hears()
            yield reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return list(self.stream(messages, timeout=timeout))

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)
