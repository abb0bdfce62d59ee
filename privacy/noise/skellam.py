"""Skellam noise, the difference of two Poisson variables of one mean, by a table of its distribution.

P(k) = exp(-v) I_|k|(v) with v the variance and I the modified Bessel function. Sums of Skellam noise are Skellam noise,
whose variance is the sum of theirs: what several parties add in shares has one known distribution (Agarwal, Kairouz &
Liu 2021, arXiv 2110.04995).
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from privacy.noise.table import NoiseTable, thresholds
from privacy.table_distance import BITS, skellam_distance, skellam_largest

SMALLEST_DEVIATION, LARGEST_DEVIATION = 2.0**-3, 2.0**16

_START = 1 << 320  # the weight that the recurrence starts from: far above its rounding


@dataclass(frozen=True, kw_only=True, eq=False)
class SkellamTable(NoiseTable):
    """The table for one deviation.

    Attributes:
        deviation: standard deviation of the distribution.
    """

    deviation: float


@lru_cache(maxsize=8)
def skellam_table(deviation: float) -> SkellamTable:
    """The table for a standard deviation, made once in a process (1000: 40 ms; 2^16: some seconds).

    Raises:
        ValueError: if the deviation is not between 2^-3 and 2^16.
    """
    if not SMALLEST_DEVIATION <= deviation <= LARGEST_DEVIATION:
        raise ValueError(f"the deviation of Skellam noise must be between 2^-3 and 2^16, got {deviation}")
    largest = skellam_largest(deviation)
    return SkellamTable(
        deviation=deviation,
        largest=largest,
        distance=skellam_distance(deviation),
        **thresholds(_weights(deviation, largest)),
    )


def _weights(deviation: float, largest: int) -> list[int]:
    """Numbers in the proportions of I_0(v) .. I_largest(v), each off by less than 2^-140 of itself.

    By the recurrence I_(k-1) = I_(k+1) + (2k / v) I_k, downwards from 0 and 1 at N + 1 and N far out (Miller's
    algorithm), in whole numbers. Two things make it inexact:

    - The true ratio r = I_(N+1) / I_N lies between 0 and 1, and 0 is taken. Let u be the solution from 1 and 0: I is
      proportional to w + r u. As w_k u_(k+1) - w_(k+1) u_k is 1 at N and changes its sign alone from k to k - 1,
      u_k / w_k changes by 1 / (w_k w_(k-1)) there, with alternating signs and ever less, for w_(k-1) > w_(k+1). So up
      to L = `largest` it stays within 1 / (w_L w_(L-1)) of what it is at L, in units where w_N = 1.
    - Each product is rounded down, by less than 1. What that takes away is a solution of its own, from 0 and 1: by the
      same argument no more than 1 / w_k of any weight from there on. The smallest weights are the first two.
    """
    v = Fraction(deviation) ** 2  # a float is a fraction
    double, divisor = 2 * v.denominator, v.numerator
    far = largest + largest // 2 + 50  # weights fall by another 2^-100 up to there; it is checked
    after, weight, found = 0, _START, []
    smallest = _START
    for k in range(far, 0, -1):
        after, weight = weight, after + double * k * weight // divisor
        smallest = min(smallest, weight) if k == far else smallest
        if k - 1 <= largest:
            found.append(weight)
    last = min(found[:2]) // _START
    if not (last >= 1 << 71 and smallest >= far << 141):
        raise AssertionError(f"the table of Skellam noise of deviation {deviation} is not as exact as {BITS} bits need")
    return found[::-1]
