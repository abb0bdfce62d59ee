"""What a run tells as it goes on: one record a round, for metrics.jsonl and for whoever watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shared_models.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SecureSumRecord:
    """How a round's secure sum went.

    Attributes:
        attempts: at the sum, in this round.
        charged: of them, those in which clients were asked for masked vectors, and so were charged.
        survivors: number of clients whose updates are in the sum; 0 where the round was given up.
        dropped: of the last attempt, the clients that fell out in each phase.
    """

    attempts: int
    charged: int
    survivors: int
    dropped: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class AsynchronousRecord:
    """A step of clients at their own pace; all of it follows from the plan.

    Attributes:
        time: when the step was taken, by the schedule's own clock; 1 is what a client takes in the median.
        staleness: of its updates, in steps, on average.
        most_staleness: of its oldest.
    """

    time: float
    staleness: float
    most_staleness: int


@dataclass(frozen=True)
class RoundRecord:
    """One line of metrics.jsonl.

    Attributes:
        round: number of the round, from 1.
        seconds: wall time of the round with its evaluation; the checkpoint comes after. None where the cohort is
            secret, for it tells of its size.
        cohort: number of clients in the cohort; None where it is secret.
        updates: number of good updates; None under central trust, where that is no step's business (rule 3).
        faults: `client` and `reason` of each missing one, in the cohort's order; under central trust, of each that
            refused by plan, policy or ledger alone.
        train_loss: mean training loss; None under privacy, unless sites let it out unprotected.
        epsilon_max: largest epsilon a client has spent so far, the failed rounds included; None without privacy, or
            where none can be computed.
        bytes_up, bytes_down: parameters on the wire; in a secure sum its own messages too. None under central trust.
        evaluation: metrics of the new model; None where it was not evaluated.
        unit: what the epsilon protects (rule 6); None without privacy.
        examples: number of records of the clients whose sites let that out unprotected; None if none did.
        secure_sum: how the round's secure sum went; None where there was none.
        clipping_norm: of the round, where it adapts; else None.
        asynchronous: of clients at their own pace; else None.
    """

    round: int
    seconds: float | None
    cohort: int | None
    updates: int | None
    faults: list[dict[str, str]]
    train_loss: float | None
    epsilon_max: float | None
    bytes_up: int | None
    bytes_down: int | None
    evaluation: dict[str, float] | None
    unit: str | None = None
    examples: int | None = None
    secure_sum: SecureSumRecord | None = None
    clipping_norm: float | None = None
    asynchronous: AsynchronousRecord | None = None


class Observer(Protocol):
    """Is told how the run goes."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The clients are there; `done` rounds were played before (on resume)."""
        ...

    def note(self, text: str) -> None:
        """Something to know before the rounds begin, in one line."""
        ...

    def round_done(self, record: RoundRecord) -> None:
        """A round is over and on disk."""
        ...


class Silent:
    """An observer that says nothing."""

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """Nothing to say."""

    def note(self, text: str) -> None:
        """Nothing to say."""

    def round_done(self, record: RoundRecord) -> None:
        """Nothing to say."""


class Both:
    """Tells two observers, one after the other."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = first, second

    def started(self, plan: Plan, clients: int, done: int) -> None:
        for one in self._both:
            one.started(plan, clients, done)

    def note(self, text: str) -> None:
        for one in self._both:
            one.note(text)

    def round_done(self, record: RoundRecord) -> None:
        for one in self._both:
            one.round_done(record)
