"""The grid on which sums of clipped gradients lie that clients add up (rules 1, 2 and 9)."""

import math
from dataclasses import dataclass
from typing import Literal

from privacy.mechanisms import LEAST_ROUNDED_SHARE, rounded_sensitivity
from privacy.noise_limits import LARGEST_SCALE
from privacy.sum_grid import SumNoise, ring_bits
from privacy.table_distance import cut_off_normal_largest

SLACK = 2.0**-12
"""Of the clipping norm: what adding up in float64 may move a sum by beyond it (`privacy.dpsgd.gradient_sum`)."""

_FINEST = {32: 20, 64: 30}  # binary digits of a clipping norm in steps, by the width of the ring
_LITTLE = 0.01  # of the clipping norm: what rounding may cost before a wider ring is worth its bytes


@dataclass(frozen=True, kw_only=True)
class ExampleSumGrid:
    """How one client's sum of clipped gradients becomes whole numbers with a share of noise.

    Each gradient is clipped to C, and the client's sum of them, *not* each of them, is rounded to whole steps: a sum
    needs no per-example vectors. One record more or less moves the sum by C, by `SLACK` C for the arithmetic, and
    rounded by less than a step more in each of d coordinates: C (1 + SLACK) / step + sqrt(d) steps at most, in L2,
    which is what the noise is made for. Before that each coordinate is clamped to N C, N the public batch size of a
    client: this moves no two sums apart, and makes a ring wide enough for every sum.

    Attributes:
        clipping_norm: C.
        steps: C in steps, a power of two.
        dimension: d, number of coordinates.
        most: largest magnitude of one coordinate of a client's sum, in steps.
        noise_share: standard deviation of one client's noise, in steps.
        width: of the ring, in bits; no sum wraps in it.
    """

    clipping_norm: float
    steps: int
    dimension: int
    most: int
    noise_share: float
    width: Literal[32, 64]

    @property
    def noise(self) -> SumNoise:
        """Distribution of the noise."""
        return "rounded-gaussian"

    @property
    def step(self) -> float:
        """Width of a step: exactly C / steps."""
        return self.clipping_norm / self.steps

    @property
    def largest(self) -> int:
        """Largest magnitude of one client's noise in one coordinate, in steps."""
        return cut_off_normal_largest(self.noise_share)

    @property
    def bound(self) -> int:
        """Largest magnitude of one coordinate of what a client puts into the sum, in steps; public."""
        return self.most + self.largest

    def sensitivity(self, records: int = 1) -> float:
        """L2 distance by which so many records, there or not, can move the sum, in steps."""
        return _sensitivity(self.steps, self.dimension, records)

    def bits(self, clients: int) -> Literal[32, 64]:
        """Width of the ring in which a sum over so many clients never wraps.

        Raises:
            ValueError: there is none.
        """
        return max(ring_bits(clients, self.bound), self.width)

    @classmethod
    def of(
        cls,
        *,
        clipping_norm: float,
        noise_multiplier: float,
        honest: int,
        dimension: int,
        batch_size: float,
        clients: int,
    ) -> "ExampleSumGrid":
        """The grid for a noise multiplier z: shares of z times the sensitivity to one record, over sqrt(honest).

        In a ring of 32 bits if a grid is there whose rounding costs less than a hundredth of C, else one of 64; the
        finest that a sum over all clients fits without ever wrapping.

        Args:
            clipping_norm: C, > 0.
            noise_multiplier: z, standard deviation of the noise of all honest clients over what one record moves, > 0.
            honest: fewest clients whose share of noise counts, >= 1.
            dimension: d, >= 1.
            batch_size: N, public size of one client's batch, > 0.
            clients: in a sum at most.

        Raises:
            ValueError: if there is no such grid, or a value is out of range.
        """
        if not (min(clipping_norm, noise_multiplier, batch_size) > 0 and min(honest, dimension, clients) >= 1):
            raise ValueError("a grid needs a clipping norm, noise, a batch, clients and coordinates, all above 0")
        widths: tuple[Literal[32, 64], ...] = (32, 64)
        for width in widths:
            for digits in range(_FINEST[width], 0, -1):
                share = noise_multiplier * _sensitivity(1 << digits, dimension, 1) / math.sqrt(honest)
                if not LEAST_ROUNDED_SHARE <= share <= LARGEST_SCALE:
                    continue
                most = math.ceil(batch_size * 2**digits)
                if clients * (most + cut_off_normal_largest(share)) >= 1 << (width - 1):
                    continue
                if math.sqrt(dimension) > _LITTLE * 2**digits:
                    break
                return cls(
                    clipping_norm=clipping_norm,
                    steps=1 << digits,
                    dimension=dimension,
                    most=most,
                    noise_share=share,
                    width=width,
                )
        raise ValueError(
            f"noise_multiplier {noise_multiplier} over {honest} honest clients with {dimension} parameters is out of "
            "range: the grid would be too coarse for the clipping norm; give less noise, train fewer parameters, or "
            "have more honest clients"
        )


def _sensitivity(steps: int, dimension: int, records: int) -> float:
    return rounded_sensitivity(clipping_norm=records * steps * (1 + SLACK), grid=1.0, dimension=dimension)
