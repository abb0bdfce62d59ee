"""The table [federation.asynchronous] of a plan: clients at their own pace (FedBuff; Nguyen et al. 2022, 2106.06639).

`concurrency` clients are at work at a time, each on the model that was the newest when it began. Whoever is ready gives
its update and makes room for another client; whenever `buffer` updates are there, the server takes a step: that is a
round. An update on a model that is s steps old counts (1 + s)^-exponent, and the sum is divided by `buffer`, as in the
paper (algorithm 1; section 3).

Who begins when, and how long it takes, follows from the plan's seed and from the clients' ids, never from data: all of
it is known before the first round (`schedule`). So it tells nothing of anybody, and a run is the same on every grid. It
belongs to simulations: time is the schedule's own.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
from pydantic import Field

from shared_models.plan_section import Count, CountOrZero, NonNegative, Section
from shared_models.seeds import derive_seed

if TYPE_CHECKING:
    from shared_models.plan import Plan

_MOST_EVENTS: Final = 10_000_000


class AsynchronousPlan(Section):
    """Clients work at their own pace; in simulation."""

    buffer: Count = Field(10, description="Updates that make a step of the server (K): that is a round.")
    concurrency: Count = Field(10, description="Clients at work at a time.")
    exponent: NonNegative = Field(
        0.5, description="An update on a model that is s steps old counts (1 + s)^-exponent; 0: all count the same."
    )
    most_staleness: CountOrZero = Field(
        20, description="A client whose model is older than so many steps is called back, and gives nothing."
    )
    participations: Count | None = Field(
        None, description="Most updates of one client in the run; default: as many as the schedule has, or the rounds."
    )
    spread: NonNegative = Field(
        0.5, description="How unlike clients' speeds are: standard deviation of the logarithm of the time they take."
    )
    jitter: NonNegative = Field(0.1, description="The same from one time to the next of a client.")


@dataclass(frozen=True)
class Arrival:
    """An update that is in a step.

    Attributes:
        client: whose.
        version: steps that had made the model it began with; 0 for the first model.
        time: when it came; 1 is what a client takes in the median.
    """

    client: str
    version: int
    time: float


Steps = tuple[tuple[Arrival, ...], ...]
"""The arrivals of each step, in their order."""


class StarvedError(ValueError):
    """A schedule with too few clients to go on."""


def is_asynchronous(plan: Plan) -> bool:
    """Whether clients work at their own pace."""
    return plan.federation.asynchronous is not None


def asynchronous_of(plan: Plan) -> AsynchronousPlan:
    """The plan's table.

    Raises:
        ValueError: the plan has none.
    """
    found = plan.federation.asynchronous
    if found is None:
        raise ValueError("the plan's clients don't work at their own pace")
    return found


def participations_of(plan: Plan) -> int:
    """Most updates that a client gives in the run: what its price is made for."""
    rounds = plan.federation.rounds
    if not is_asynchronous(plan):
        return rounds
    return min(rounds, asynchronous_of(plan).participations or rounds)


def weight_of(plan: Plan, staleness: int) -> float:
    """What an update on a model of that age counts; at most 1."""
    return float((1.0 + staleness) ** -asynchronous_of(plan).exponent)


def schedule(plan: Plan, clients: Sequence[str]) -> Steps:
    """Who is in which step with which model.

    A client gives at most one update a step: after one it isn't asked again before the step is taken.

    Args:
        plan: with a table [federation.asynchronous].
        clients: ids of all, in order.

    Raises:
        StarvedError: too few clients may still be asked; one line that says what to do.
    """
    return _schedule(asynchronous_of(plan), plan.seed, plan.federation.rounds, participations_of(plan), tuple(clients))


@lru_cache(maxsize=4)
def _schedule(table: AsynchronousPlan, seed: int, rounds: int, most: int, clients: tuple[str, ...]) -> Steps:
    draw = np.random.default_rng(derive_seed(seed, "asynchronous"))
    pace = {c: _lognormal(table.spread, seed, "pace", c) for c in clients}
    begun, given = Counter[str](), Counter[str]()
    at_work: dict[str, tuple[int, int]] = {}  # version, and how often the client had begun
    ends: list[tuple[float, int, str]] = []  # heap of (time, how often begun, client)
    steps: list[tuple[Arrival, ...]] = []
    buffer: list[Arrival] = []
    now = 0.0

    def fill() -> None:
        waiting = {arrival.client for arrival in buffer}
        free = [c for c in clients if c not in at_work and c not in waiting and given[c] < most]
        room = min(table.concurrency - len(at_work), len(free))
        for place in sorted(draw.choice(len(free), size=room, replace=False)) if room > 0 else ():
            client = free[int(place)]
            begun[client] += 1
            at_work[client] = len(steps), begun[client]
            took = pace[client] * _lognormal(table.jitter, seed, "work", client, begun[client])
            heapq.heappush(ends, (now + took, begun[client], client))

    fill()
    events = 0
    while len(steps) < rounds:
        events += 1
        if not ends or events > _MOST_EVENTS:
            raise StarvedError(
                f"federation.asynchronous: after {len(steps)} of {rounds} rounds too few of the {len(clients)} clients "
                f"may be asked to fill a buffer of {table.buffer}; allow more participations or staleness, or make it "
                "smaller"
            )
        now, times, client = heapq.heappop(ends)
        if at_work.get(client, (0, 0))[1] != times:  # it was called back
            continue
        version, _ = at_work.pop(client)
        given[client] += 1
        buffer.append(Arrival(client, version, now))
        if len(buffer) == table.buffer:
            steps.append(tuple(buffer))
            buffer.clear()
            for late in [c for c, (v, _) in at_work.items() if len(steps) - v > table.most_staleness]:
                del at_work[late]
        fill()
    return tuple(steps)


def _lognormal(deviation: float, seed: int, *labels: str | int) -> float:
    """A time whose median is 1."""
    return float(np.exp(deviation * np.random.default_rng(derive_seed(seed, *labels)).standard_normal()))


def filled_asynchronous(plan: Plan) -> AsynchronousPlan:
    """The plan's table with `participations` written out.

    Raises:
        ValueError: the schedule can't be kept with so many clients.
    """
    from shared_models.plan_data import numbered

    table = asynchronous_of(plan)
    if plan.data.parts is None:
        return table.model_copy(update={"participations": participations_of(plan)})
    left_out = plan.data.leave_out or ()
    steps = schedule(plan, tuple(client for client in numbered(plan.data.parts) if client not in left_out))
    if table.participations is not None:
        return table
    most = max(Counter(arrival.client for step in steps for arrival in step).values())
    return table.model_copy(update={"participations": most})


def check_asynchronous(plan: Plan) -> None:
    """Refuse what clients at their own pace can't be combined with.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    from shared_models.plan_federation import MEAN_STRATEGIES, AllCohort

    if not is_asynchronous(plan):
        return
    table, federation, privacy = asynchronous_of(plan), plan.federation, plan.privacy
    what = "federation.asynchronous"
    if privacy.trust == "distributed":
        raise ValueError(
            f"{what} needs single updates, which privacy.trust = 'distributed' hides; allowed: none, local, central"
        )
    if not isinstance(federation.cohort, AllCohort):
        raise ValueError(
            f"federation.cohort.sampling = '{federation.cohort.sampling}': with {what} its concurrency says how many "
            "are at work; allowed: all"
        )
    if federation.strategy not in MEAN_STRATEGIES:
        raise ValueError(
            f"federation.strategy = '{federation.strategy}' with {what} is not offered; allowed: "
            f"{', '.join(MEAN_STRATEGIES)}"
        )
    if plan.weighting != "uniform":
        raise ValueError(f"federation.weighting = 'examples': with {what} staleness is what weighs; allowed: uniform")
    if plan.evaluates_at_clients:
        raise ValueError(f"evaluation.where = 'clients' with {what} is not offered; allowed: server, none")
    for table_name in ("adaptive", "correlated"):
        if getattr(privacy, table_name) is not None and plan.is_private:
            raise ValueError(f"privacy.{table_name} follows rounds of whole cohorts; with {what} remove it")
    clients = plan.data.clients
    if clients is not None and max(table.buffer, table.concurrency) > clients:
        key = "buffer" if table.buffer > clients else "concurrency"
        raise ValueError(
            f"{what}.{key} = {getattr(table, key)} is more than data.partition.clients = {clients}; a client gives at "
            "most one update a round"
        )
    if federation.min_clients > table.buffer:
        raise ValueError(
            f"federation.min_clients = {federation.min_clients} is more than {what}.buffer = {table.buffer}"
        )
