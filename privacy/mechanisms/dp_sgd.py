"""DP-SGD at one client: noisy sums of clipped gradients of Poisson-sampled batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.mechanisms.release import Mechanism, Release, count, positive, rate

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class DpSgd(Mechanism, name="dp-sgd"):
    """Steps of DP-SGD on Poisson-sampled batches (Abadi et al. 2016, arXiv 1607.00133, algorithm 1).

    In each step every unit enters the batch independently, and the sum of the batch's clipped gradients is
    released with Gaussian noise. Neighbouring data sets differ by adding or removing one unit.

    Attributes:
        noise_multiplier: standard deviation of the noise over the clipping norm, > 0.
        sample_rate: probability that one unit enters one batch, in (0, 1]; 1 is the full batch.
        steps: number of noisy sums released, >= 1.
        records_per_unit: most records one unit (a person) has, each sampled by itself and each clipped to the
            clipping norm, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int
    records_per_unit: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise_multiplier=positive("noise_multiplier", self.noise_multiplier),
            sample_rate=rate("sample_rate", self.sample_rate),
            steps=count("steps", self.steps),
            records_per_unit=count("records_per_unit", self.records_per_unit),
        )

    def with_noise_multiplier(self, noise_multiplier: float) -> DpSgd:
        """The same steps with other noise."""
        return replace(self, noise_multiplier=noise_multiplier)

    def event(self) -> dp_event.DpEvent:
        """The steps as `dp_accounting` prices them; the full batch is the plain Gaussian mechanism.

        A unit of k records moves the sum by up to as many clipping norms as records of it were drawn: a mixture of
        Gaussians with binomial weights (Ganesh 2024, arXiv 2401.10294, theorem 1.1).
        """
        from dp_accounting import dp_event

        k, q = self.records_per_unit, self.sample_rate
        if q == 1 or k == 1:
            return self.looser_event()
        weights = [_binomial(k, drawn, q) for drawn in range(k + 1)]
        step = dp_event.MixtureOfGaussiansDpEvent(self.noise_multiplier, list(range(k + 1)), weights)
        return dp_event.SelfComposedDpEvent(step, self.steps)

    def looser_event(self) -> dp_event.DpEvent:
        """As if all records of a unit were drawn whenever one is: larger shifts with the same weights cost no less
        (Choquette-Choo et al. 2024, arXiv 2310.15526, lemma 4.5), and RDP can price it."""
        from dp_accounting import dp_event

        step = dp_event.GaussianDpEvent(self.noise_multiplier / self.records_per_unit)
        if self.sample_rate < 1:
            any_drawn = 1 - (1 - self.sample_rate) ** self.records_per_unit
            rate = self.sample_rate if self.records_per_unit == 1 else any_drawn
            step = dp_event.PoissonSampledDpEvent(rate, step)
        return dp_event.SelfComposedDpEvent(step, self.steps)

    def parts(self) -> tuple[Release, int]:
        """One step, and the number of steps."""
        return replace(self, steps=1), self.steps

    def describe(self) -> str:
        """One line for a person."""
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps"
        batch = "full batches" if self.sample_rate == 1 else f"Poisson batches of rate {self.sample_rate:g}"
        unit = "" if self.records_per_unit == 1 else f", at most {self.records_per_unit} records a unit"
        return f"DP-SGD: {steps} on {batch}, noise multiplier {self.noise_multiplier:g}{unit}"


def _binomial(n: int, k: int, rate: float) -> float:
    if n <= 1000:
        return math.comb(n, k) * rate**k * (1 - rate) ** (n - k)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)  # the number itself is too large
    return math.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate))
