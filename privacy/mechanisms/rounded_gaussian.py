"""Vector sums with shares of rounded Gaussian noise: priced as one Gaussian, and therefore by loss distributions.

A share is round(s G), G standard normal, in each coordinate. The sum of h shares is not the rounding of one Gaussian.
It is the rounding of one Gaussian *and something else that is independent of the data*, which is as good:

    round(s G_1) + ... + round(s G_h)  =  round(sqrt(h) s G + U_1 + ... + U_(h-1)),

U_i uniform on [-1/2, 1/2], in distribution, but for a distance t that is far below every other number here. So x plus
the shares, x whole, is the Gaussian mechanism x + sqrt(h) s G, to which independent numbers are added, rounded: both
are post-processing, and what an accountant says of the Gaussian holds as it stands (rule 4: this is the written proof).

Why. Let f be the density of s G + U; its Fourier transform is f^(w) = exp(-s^2 w^2 / 2) sinc(w / 2). A share takes the
value k with probability p(k) = P(|s G - k| <= 1/2) = f(k): the density, sampled. The right side above takes it with
probability q(k) = (f * ... * f)(k), h factors, for the integral from k - 1/2 to k + 1/2 of a density is its convolution
with that of U, at k. By Poisson's summation formula p has the transform P(w) = sum over whole m of
f^(w + 2 pi m), and q has Q(w) = sum of f^(w + 2 pi m)^h. For |w| <= pi all terms but that of m = 0 together are at
most e = 2.2 exp(-pi^2 s^2 / 2), and that of m = 0 at most 1: so |P^h - f^^h| <= h e (1 + e)^(h - 1),
|Q - f^^h| <= e, and inverting the transform, |p^(*h)(k) - q(k)| <= D = (h (1 + e)^(h - 1) + 1) e for every k. Sums
beyond K = 40 sqrt(h) s + h weigh less than exp(-790) under either. So t <= (K + 1) D + exp(-790). With a share of 8
steps, h = 1000: t < 1e-127.

Noise beyond 13.5 s is cut off to it, so that a ring can be wide enough for every sum; that is in the distance too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.mechanisms.noisy_sum import NoisySum
from privacy.mechanisms.release import count
from privacy.table_distance import cut_off_normal_distance

if TYPE_CHECKING:
    from dp_accounting import dp_event

LEAST_SHARE = 8.0
"""In steps: below it the proof's distance grows quickly."""


@dataclass(frozen=True, kw_only=True)
class RoundedGaussianSum(NoisySum, name="rounded-gaussian-sum"):
    """Sums whose honest clients' noise is one Gaussian's, of deviation sqrt(honest) times a share.

    Attributes:
        records_per_unit: most records of one unit (a person) that `l2_sensitivity` is about, >= 1: the price has them
            in it. Several can't be sampled one by one: they would need the price of a group.
    """

    records_per_unit: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(records_per_unit=count("records_per_unit", self.records_per_unit))
        if self.noise_share < LEAST_SHARE:
            raise ValueError(f"noise_share must be at least {LEAST_SHARE:g} steps, got {self.noise_share}")
        if self.records_per_unit > 1 and self.sample_rate < 1:
            raise ValueError("several records of a unit that are sampled one by one have no price here")

    def event(self) -> dp_event.DpEvent:
        """The Gaussian mechanism, on Poisson samples if there is a rate."""
        from dp_accounting import dp_event

        step: dp_event.DpEvent = dp_event.GaussianDpEvent(self.noise_multiplier)
        if self.sample_rate < 1:
            step = dp_event.PoissonSampledDpEvent(self.sample_rate, step)
        return dp_event.SelfComposedDpEvent(step, self.releases)

    @property
    def distance(self) -> float:
        """What is cut off each draw, and t of the module's proof for each coordinate of each sum."""
        return super().distance + self.releases * self.dimension * self._sum_distance()

    def _sum_distance(self) -> float:
        h, s = self.honest, self.noise_share
        alias = 2.2 * math.exp(-((math.pi * s) ** 2) / 2)  # may underflow to 0: the last term is above it then
        difference = (h * math.exp((h - 1) * alias) + 1) * alias
        return (40 * math.sqrt(h) * s + h + 1) * difference + math.exp(-700)

    def _draw_distance(self) -> float:
        return cut_off_normal_distance()
