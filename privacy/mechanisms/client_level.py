"""Client-level differential privacy: one client's whole data set is the unit, and a trusted server adds the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from privacy.mechanisms.release import Mechanism, Release, count, positive, rate
from privacy.neighbours import Neighbours

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class ClientLevel(Mechanism, name="client-level"):
    """Rounds of DP-FedAvg (McMahan, Ramage, Talwar & Zhang 2018, arXiv 1710.06963, algorithm 1).

    Each round releases the sum of the cohort's clipped updates, divided by a public number, with Gaussian noise. How
    the cohort is drawn decides what neighbours are and what the release costs. Amplification by sampling holds only
    against those who never learn who took part (rule 3), and every client is charged for every round.

    Attributes:
        noise_multiplier: standard deviation of the noise on the sum over the clipping norm of an update, > 0.
        cohort: "poisson": each client joins by itself with probability `rate`; "fixed": `size` clients of `of`,
            uniformly without replacement; "full": every client, in every round.
        rate: of a Poisson cohort, in (0, 1]; else None.
        size: of a fixed cohort, >= 1; else None.
        of: number of clients that a fixed cohort is drawn from, >= `size`, public; else None.
        rounds: number of rounds, >= 1.

    Raises:
        ValueError: if a value is out of range, missing, or of another kind of cohort.
    """

    noise_multiplier: float
    cohort: Literal["poisson", "fixed", "full"]
    rate: float | None = None
    size: int | None = None
    of: int | None = None
    rounds: int = 1

    def __post_init__(self) -> None:
        needed = {"poisson": {"rate"}, "fixed": {"size", "of"}, "full": set[str]()}.get(self.cohort)
        if needed is None:
            raise ValueError(f"cohort must be poisson, fixed or full, got {self.cohort!r}")
        for name in ("rate", "size", "of"):
            if (getattr(self, name) is not None) != (name in needed):
                raise ValueError(f"a {self.cohort} cohort {'needs' if name in needed else 'has no'} {name}")
        self._set(
            noise_multiplier=positive("noise_multiplier", self.noise_multiplier),
            rate=None if self.rate is None else rate("rate", self.rate),
            size=None if self.size is None else count("size", self.size),
            of=None if self.of is None else count("of", self.of),
            rounds=count("rounds", self.rounds),
        )
        if self.size is not None and self.of is not None and self.size > self.of:
            raise ValueError(f"size must be at most of, got {self.size} of {self.of}")

    @property
    def relation(self) -> Neighbours:
        """Of a fixed cohort, neighbours replace one client, for its size would betray one more; else add or remove."""
        fixed = self.cohort == "fixed"
        return Neighbours.REPLACE_ONE if fixed else Neighbours.ADD_OR_REMOVE_ONE

    def with_noise_multiplier(self, noise_multiplier: float) -> ClientLevel:
        """The same rounds with other noise."""
        return replace(self, noise_multiplier=noise_multiplier)

    @property
    def sample_rate(self) -> float:
        """Chance of a client to be in a cohort."""
        if self.size is not None and self.of is not None:
            return self.size / self.of
        return 1.0 if self.rate is None else self.rate

    def event(self) -> dp_event.DpEvent:
        """The rounds as `dp_accounting` prices them.

        A fixed cohort: Wang, Balle & Kasiviswanathan 2019 (arXiv 1808.00087), theorem 27, by RDP only. Replacing a
        client takes its update out and puts another in, which moves the sum by two clipping norms: so half the noise.
        """
        from dp_accounting import dp_event

        step: dp_event.DpEvent = dp_event.GaussianDpEvent(self.noise_multiplier)
        if self.rate is not None and self.rate < 1:
            step = dp_event.PoissonSampledDpEvent(self.rate, step)
        if self.size is not None:
            step = dp_event.GaussianDpEvent(self.noise_multiplier / 2)
            step = dp_event.SampledWithoutReplacementDpEvent(self.of, self.size, step)
        return dp_event.SelfComposedDpEvent(step, self.rounds)

    def parts(self) -> tuple[Release, int]:
        """One round, and the number of rounds."""
        return replace(self, rounds=1), self.rounds

    def describe(self) -> str:
        """One line for a person."""
        rounds = "1 round" if self.rounds == 1 else f"{self.rounds} rounds"
        cohort = "all clients"
        if self.rate is not None:
            cohort = f"Poisson cohorts of rate {self.rate:g}"
        if self.size is not None:
            cohort = f"fixed cohorts of {self.size} of {self.of} clients"
        return f"DP-FedAvg: {rounds} on {cohort}, noise multiplier {self.noise_multiplier:g}"
