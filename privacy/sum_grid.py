"""The grid on which clients' contributions to a secure sum lie, with the shares of noise (rules 2 and 9).

Unlike one client's own release (`privacy.release_grid`), a sum gets its noise in shares, one from each client, and all
of it modulo the size of a ring. So a value is bounded, and the noise is one whose sum has a published price.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from privacy.mechanisms import LEAST_ROUNDED_SHARE
from privacy.noise_limits import LARGEST_SCALE
from privacy.table_distance import cut_off_normal_largest, discrete_gaussian_largest, skellam_largest

SumNoise = Literal["rounded-gaussian", "discrete-gaussian", "skellam"]

MOST_RETRIES = 8
"""Roundings that are tried before a vector is rounded towards zero."""

LARGEST_SHARES: dict[SumNoise, float] = {
    "rounded-gaussian": LARGEST_SCALE,
    "discrete-gaussian": 2.0**16,
    "skellam": 2.0**16,
}
"""In steps: the largest deviation that each noise can be drawn with."""

LARGEST_NOISE: dict[SumNoise, Callable[[float], int]] = {
    "rounded-gaussian": cut_off_normal_largest,
    "discrete-gaussian": discrete_gaussian_largest,
    "skellam": skellam_largest,
}
"""The largest magnitude of each noise in one coordinate, in steps, by its deviation."""

_MISS = 2.0**-40  # chance, at most, that a rounding is longer than allowed and drawn again
# In steps. Rounding adds at most 1/4 to the share's variance of 2^20; finer noise has a larger table, which is slower.
_SHARE = 2.0**10
_LITTLE, _MOST = 0.99, 0.5  # of the clipping norm: what rounding should leave, and must leave
_FINEST = 30  # binary digits of a clipping norm in steps: squares of its steps fit 64 bits


@dataclass(frozen=True, kw_only=True)
class SumGrid:
    """How a vector clipped to a norm C becomes whole numbers with a share of noise.

    A vector is clipped to `norm` steps, a little less than C, and rounded at random to whole steps, each coordinate up
    or down with its own mean as it was. A rounding longer than C, `steps`, is never used: it is drawn again, and after
    `MOST_RETRIES` the vector is rounded towards zero. So for *every* outcome of the rounding the whole numbers are no
    longer than C, and replacing one client's by zeros moves the sum by at most `steps`, in L2.

    This is the conditional rounding of Kairouz, Liu & Steinke 2021 (arXiv 2102.06387, algorithm 1), solved for the norm
    that goes in: rounded, a vector of norm c in d coordinates has a squared norm of at most
    c² + d/4 + sqrt(2 ln(1 / beta)) (c + sqrt(d) / 2) except with probability beta, by Hoeffding's inequality (its
    square is a sum of independent numbers, each with two values 2a + 1 apart); and no rounding is longer than
    c + sqrt(d). Here beta is 2^-40: whether one is drawn again hardly tells of the vector, nor biases it.

    Attributes:
        clipping_norm: C.
        steps: C in steps, a power of two; the L2 sensitivity of the sum, in steps.
        norm: in steps; what a vector is clipped to before it is rounded.
        noise: distribution of the noise.
        noise_share: standard deviation of one client's noise, in steps.
        largest: largest magnitude of one client's noise in one coordinate, in steps.
    """

    clipping_norm: float
    steps: int
    norm: float
    noise: SumNoise
    noise_share: float
    largest: int

    @property
    def step(self) -> float:
        """Width of a step: exactly C / steps."""
        return self.clipping_norm / self.steps

    @property
    def bound(self) -> int:
        """Largest magnitude of one coordinate of what a client puts into the sum, in steps; public."""
        return self.steps + self.largest

    @property
    def sensitivity(self) -> float:
        """L2 distance by which one client can move the sum, in steps."""
        return float(self.steps)

    def bits(self, clients: int) -> Literal[32, 64]:
        """Width of the ring in which a sum over so many clients never wraps, whatever the noise.

        Raises:
            ValueError: there is none.
        """
        return ring_bits(clients, self.bound)

    @classmethod
    def of(
        cls,
        *,
        clipping_norm: float,
        noise_multiplier: float,
        honest: int,
        dimension: int,
        noise: SumNoise = "rounded-gaussian",
    ) -> "SumGrid":
        """The grid for a noise multiplier z: shares of z C / sqrt(honest), so that `honest` of them have z C together.

        The coarsest whose shares deviate by 2^10 steps at least and where rounding takes less than a hundredth of C.
        Where a share would be too large for a sampler's table, a coarser one, if rounding leaves half of C.

        Args:
            clipping_norm: C, > 0.
            noise_multiplier: z, standard deviation of the noise of all honest clients together over C, > 0.
            honest: fewest clients whose share of noise counts, >= 1.
            dimension: of the vector, >= 1.
            noise: distribution of the noise.

        Raises:
            ValueError: if there is no such grid, or a value is out of range.
        """
        if not (min(clipping_norm, noise_multiplier) > 0 and min(honest, dimension) >= 1):
            raise ValueError("a grid needs a clipping norm, noise, honest clients and coordinates, all above 0")
        root = math.sqrt(honest)

        def share(digits: int) -> float:
            return noise_multiplier * 2.0**digits / root

        digits = next(
            (n for n in range(1, _FINEST) if share(n) >= _SHARE and _input_norm(n, dimension) >= _LITTLE * 2**n),
            _FINEST,
        )
        while digits > 1 and share(digits) > LARGEST_SHARES[noise]:
            digits -= 1
        norm = _input_norm(digits, dimension)
        least = LEAST_ROUNDED_SHARE if noise == "rounded-gaussian" else 0.0
        if not least <= share(digits) <= LARGEST_SHARES[noise] or norm < _MOST * 2**digits:
            raise ValueError(
                f"noise_multiplier {noise_multiplier} over {honest} honest clients with {dimension} parameters is out "
                "of range: the grid would be too coarse for the clipping norm; give less noise, train fewer "
                "parameters, or have more honest clients"
            )
        return cls(
            clipping_norm=clipping_norm,
            steps=1 << digits,
            norm=norm,
            noise=noise,
            noise_share=share(digits),
            largest=LARGEST_NOISE[noise](share(digits)),
        )


def ring_bits(clients: int, bound: int) -> Literal[32, 64]:
    """Width of the ring in which a sum over so many clients of values up to a bound never wraps.

    Raises:
        ValueError: there is none.
    """
    if clients * bound < 1 << 31:
        return 32
    if clients * bound < 1 << 63:
        return 64
    raise ValueError(f"a sum over {clients} clients of values up to {bound} fits no ring of 64 bits")


def padded_size(size: int) -> int:
    """The next power of two: what a vector of that size takes once it is turned by Hadamard's transform."""
    return 1 << (size - 1).bit_length()


def _input_norm(digits: int, dimension: int) -> float:
    """The largest norm, in steps, of a vector whose rounding is hardly ever longer than 2^digits; maybe below 0."""
    steps, root = 2.0**digits, math.sqrt(dimension)
    t = math.sqrt(2 * math.log(1 / _MISS))
    # c² + t c = steps² - d/4 - t sqrt(d)/2; the right side is what is left for c.
    left = steps**2 - dimension / 4 - t * root / 2
    seldom = (math.sqrt(t**2 + 4 * left) - t) / 2 if left > 0 else 0.0
    return max(seldom, steps - root) * (1 - 2.0**-50)
