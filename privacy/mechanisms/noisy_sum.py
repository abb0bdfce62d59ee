"""A vector of whole numbers that clients add up, each with its share of noise, so that only the sum is ever seen.

What is priced is the worst set of honest clients that an owner accepts (rule 2): `honest` of them added their share,
itself among them, and all others none: what more of them add is independent of the data and takes nothing away.
Wrapping modulo the ring's size is post-processing.

Neighbours differ in one unit. Who takes part in a sum is public, so a client without data takes part like any other
and adds its share of noise to zeros: the noise is the same for both neighbours, and what moves is one vector of whole
numbers, `l2_sensitivity` long at most *for every outcome* of its rounding. (That a rounding is random doesn't matter:
the divergence of a mixture from a fixed distribution, and the reverse, is at most the largest of its parts'.)

A draw of noise may be a little off what is priced: `distance` bounds, in total variation, how far all of it is, and the
accountant takes it out of delta (rule 9).
"""

import math
from dataclasses import dataclass, replace
from typing import Self

from privacy.mechanisms.release import Mechanism, Release, count, positive, rate


def rounded_sensitivity(*, clipping_norm: float, grid: float, dimension: int) -> float:
    """The L2 distance, in steps of the grid, by which a vector moves at most that is rounded, if it moves by a norm.

    The move itself is the clipping norm; rounding, before and after it, adds less than a step to each coordinate.
    """
    return clipping_norm / grid + math.sqrt(dimension)


@dataclass(frozen=True, kw_only=True)
class NoisySum(Mechanism):
    """What these mechanisms share.

    Attributes:
        noise_share: standard deviation of each honest client's noise in each coordinate, in steps of the integer grid.
        honest: fewest clients whose share is in the sum and unknown to the adversary, >= 1.
        l2_sensitivity: L2 distance by which one unit can move the vector of integers, in steps, rounding included.
        dimension: of the vector, >= 1.
        sample_rate: probability that one unit enters one sum, independently and in secret, in (0, 1].
        releases: number of such sums, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_share: float
    honest: int
    l2_sensitivity: float
    dimension: int
    sample_rate: float = 1.0
    releases: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise_share=positive("noise_share", self.noise_share),
            honest=count("honest", self.honest),
            l2_sensitivity=positive("l2_sensitivity", self.l2_sensitivity),
            dimension=count("dimension", self.dimension),
            sample_rate=rate("sample_rate", self.sample_rate),
            releases=count("releases", self.releases),
        )

    @property
    def l1_sensitivity(self) -> float:
        """In steps: of integers at most the squared L2 norm, and of any vector sqrt(dimension) times the L2 norm."""
        return self.l2_sensitivity * min(math.sqrt(self.dimension), self.l2_sensitivity)

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the honest noise over the L2 sensitivity."""
        return self.noise_share * math.sqrt(self.honest) / self.l2_sensitivity

    @property
    def distance(self) -> float:
        """Of all draws that the price counts on: each coordinate of each honest client's noise, in every release."""
        return self.releases * self.honest * self.dimension * self._draw_distance()

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """The same sums with other noise.

        Raises:
            ValueError: if it is so little that the mechanism has no price.
        """
        share = noise_multiplier * self.l2_sensitivity / math.sqrt(self.honest)
        return replace(self, noise_share=share)

    def parts(self) -> tuple[Release, int]:
        """One sum, and the number of sums."""
        return replace(self, releases=1), self.releases

    def describe(self) -> str:
        """One line for a person."""
        sums = "1 sum" if self.releases == 1 else f"{self.releases} sums"
        batch = "" if self.sample_rate == 1 else f", Poisson batches of rate {self.sample_rate:g}"
        return (
            f"{self.name}: {sums} of {self.dimension} coordinates, noise share {self.noise_share:g} of each of "
            f"{self.honest} honest clients, sensitivity {self.l2_sensitivity:g}{batch}"
        )

    def _draw_distance(self) -> float:
        """Total variation between one draw of a share and what the price is about."""
        raise NotImplementedError
