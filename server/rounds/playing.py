"""What every way of playing a round has in common: what goes in, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from server.asynchronous import Arrivals
from server.cohort_grid import CohortGrid
from server.observer import SecureSumRecord
from server.replies import Head
from server.rounds.plain import Tally
from server.run_state import ClientTally, RunState
from server.strategies import ServerStrategy
from shared_models.parameters import Layout, Parameters, to_arrays
from shared_models.plan import Plan
from shared_models.plan_adaptive import is_adaptive
from shared_models.plan_scaffold import is_scaffold
from shared_models.protocol import CLIPPING_NORM, CONFIG, COUNTED, LAYOUT_DIGEST, PLAN_DIGEST, RUN

Hear = Callable[[RunState, int, str, float | None, Head], None]
"""Is told what a good reply says of its client's books: the books, the round, the client, epsilon and head."""


def request_config(plan: Plan, layout: Layout, state: RunState) -> dict[str, str]:
    """What every request says of run and plan."""
    return {PLAN_DIGEST: plan.digest(), LAYOUT_DIGEST: layout.digest, RUN: state.run}


def norm_of(plan: Plan, state: RunState) -> float | None:
    """The clipping norm of the next round, where it adapts."""
    if not is_adaptive(plan):
        return None
    return plan.privacy.clipping_norm if state.clipping_norm is None else state.clipping_norm


@dataclass(frozen=True)
class Played:
    """What came of one round's messages.

    Attributes:
        tally: who answered, and how.
        model: the next model, or None if there is none: an empty cohort, too few updates, or a strategy that failed.
        problem: what the strategy said, if it failed.
        sent: bytes on the wire, of parameters and of a secure sum's own messages.
        secure_sum: how the round's secure sum went, if it was one.
        exhausted: why no budget covers the round, so that nobody was asked.
        clipping_norm: of the next round, where it adapts and this one has moved it.
        released: with correlated noise, SHA-256 of what the round released.
    """

    tally: Tally
    model: Parameters | None = None
    problem: str | None = None
    sent: int = 0
    secure_sum: SecureSumRecord | None = None
    exhausted: str | None = None
    clipping_norm: float | None = None
    released: str | None = None


class Rounds(Protocol):
    """A way of playing rounds. What comes of the messages is in the run's books when `play` returns."""

    def needed(self, cohort: int, there: int) -> int:
        """Good updates that a round with a cohort of this size needs, if no more than `there` of it take part."""
        ...

    def play(
        self,
        number: int,
        nodes: Mapping[str, int],
        cohort: int,
        parameters: Parameters,
        state: RunState,
        keep: Callable[[], None],
    ) -> Played:
        """Play one round.

        Args:
            number: of the round, from 1.
            nodes: node of each client that takes part.
            cohort: how many were drawn, those included that are not asked.
            parameters: the shared model.
            state: the run's books.
            keep: writes the books, as they are then, to the disk.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Federated:
    """What rounds are played with.

    Attributes:
        plan: the resolved plan.
        grid: how clients are reached.
        layout: names and shapes of what is trained.
        strategy: turns updates into the next model.
        hear: is told what each good reply says of its client's books.
        tell: is told in one line what whoever watches should know.
        arrivals: of clients at their own pace; else None.
        folder: of the run, for what doesn't fit into memory; None for the system's folder for temporary files.
    """

    plan: Plan
    grid: Grid
    layout: Layout
    strategy: ServerStrategy
    hear: Hear
    tell: Callable[[str], None]
    arrivals: Arrivals | None = None
    folder: Path | None = None

    def fewest(self, cohort: int) -> int:
        """Good updates that the plan asks for. A cohort drawn smaller than the minimum must then be complete."""
        return max(1, min(self.plan.federation.min_clients, cohort))

    def config(self, state: RunState) -> dict[str, str]:
        """What every request says of run and plan."""
        return request_config(self.plan, self.layout, state)

    def requests(
        self, number: int, nodes: Mapping[str, int], parameters: Parameters, state: RunState
    ) -> tuple[dict[str, Message], ArrayRecord]:
        """The strategy's train message of each client that it asks, in the order of `nodes`; and the model as it goes
        over the wire."""
        arrays = to_arrays(parameters, self.layout)
        facade = CohortGrid(self.grid, list(nodes.values()))
        config: dict[str, str | float] = {**self.config(state)}
        norm = norm_of(self.plan, state)
        if norm is not None:
            config[CLIPPING_NORM] = norm
        messages = self.strategy.configure(number, arrays, ConfigRecord({**config}), facade)
        asked = {message.metadata.dst_node_id: message for message in messages}
        sent = {client: asked[node] for client, node in nodes.items() if node in asked}
        if is_scaffold(self.plan):
            sent = {client: _counting(message, state.clients.get(client)) for client, message in sent.items()}
        if self.arrivals is not None:
            sent = self.arrivals.requests(number, sent, parameters, self.layout)
        return sent, arrays


def _counting(message: Message, tally: ClientTally | None) -> Message:
    """The message that also says which of the client's updates was the last to be counted: both sides' variates are of
    the same ones."""
    content, head = message.content, message.metadata
    config = ConfigRecord({**content[CONFIG], COUNTED: 0 if tally is None else tally.counted})  # type: ignore[dict-item]
    return Message(RecordDict({**content, CONFIG: config}), head.dst_node_id, head.message_type)
