"""The discrete Gaussian (Canonne, Kamath, Steinke 2020, arXiv 2004.00010) by a table of its distribution.

P(k) is proportional to exp(-k² / 2 sigma²) over the whole numbers. Unlike a rounded Gaussian it has published
bounds for the *sum* of several parties' draws (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, for secure sums).

The table holds the distribution function as integers of 128 bits; a draw is the number of entries that a uniform
integer of 128 bits has reached. What the table cuts off or rounds is bounded, by exact arithmetic, as a distance in
total variation, which belongs into delta (rule 9).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

SMALLEST_SIGMA, LARGEST_SIGMA = 2.0**-3, 2.0**16

_BITS = 128  # of a threshold; 64 of them decide all but a few draws in 2^64
_FRACTION = 256  # binary digits of a weight while the table is made
_REACH = 13.5  # in sigma: what lies beyond weighs less than 2^-128
_GUIDE = 16  # the first bits of a draw say between which thresholds it falls (Chen & Asau 1974)


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteGaussianTable:
    """The table for one sigma.

    Attributes:
        sigma: parameter of the distribution, nearly its standard deviation.
        largest: the largest magnitude that is ever drawn.
        distance: bound on the total variation between one draw and the true distribution.
    """

    sigma: float
    largest: int
    distance: float
    _upper: NDArray[np.uint64]  # thresholds, ascending: their upper 64 bits
    _lower: NDArray[np.uint64]
    _guide: NDArray[np.int32]  # number of thresholds below i · 2^48, for i = 0 .. 2^16

    def draw(self, words: NDArray[np.uint64], more: Callable[[], int]) -> NDArray[np.int64]:
        """One value for each word.

        Args:
            words: uniform integers of 64 bits.
            more: draws 64 further bits, as an integer.
        """
        start = (words >> np.uint64(64 - _GUIDE)).astype(np.int64)
        reached = self._guide[start].astype(np.int64)
        undecided = np.flatnonzero(reached != self._guide[start + 1])
        reached[undecided] = np.searchsorted(self._upper, words[undecided])
        at = np.minimum(reached, len(self._upper) - 1)
        for i in np.flatnonzero(self._upper[at] == words).tolist():
            reached[i] = self._reached(int(words[i]) << 64 | more(), int(reached[i]))
        return reached - self.largest

    def _reached(self, word: int, at_least: int) -> int:
        while at_least < len(self._upper):
            if int(self._upper[at_least]) << 64 | int(self._lower[at_least]) > word:
                break
            at_least += 1
        return at_least


def delta_of_distance(distance: float, *, draws: int, epsilon: float) -> float:
    """What is to be added to delta because draws are off by `distance` each, in total variation.

    If a release with true noise is (epsilon, delta)-private and `draws` values of its noise are each within
    `distance`, then P'(S) <= P(S) + t <= e^epsilon Q(S) + delta + t <= e^epsilon (Q'(S) + t) + delta + t, with
    t = draws · distance.
    """
    return draws * distance * (1 + math.exp(epsilon))


@lru_cache(maxsize=8)
def discrete_gaussian_table(sigma: float) -> DiscreteGaussianTable:
    """The table for `sigma`, made once in a process (sigma 1000: 15 ms; 2^16: a second).

    Raises:
        ValueError: if sigma is not between 2^-3 and 2^16.
    """
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"the sigma of a discrete Gaussian must be between 2^-3 and 2^16, got {sigma}")
    largest = math.ceil(_REACH * sigma)
    weights = _weights(sigma, largest)
    values = [*weights[:0:-1], *weights]
    total = sum(values)
    thresholds, cumulative = [], 0
    for weight in values[:-1]:
        cumulative += weight
        thresholds.append((cumulative << _BITS) // total)
    upper = np.array([threshold >> 64 for threshold in thresholds], dtype=np.uint64)
    lower = np.array([threshold & (1 << 64) - 1 for threshold in thresholds], dtype=np.uint64)
    starts = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(64 - _GUIDE)
    guide = np.append(np.searchsorted(upper, starts), len(upper)).astype(np.int32)
    return DiscreteGaussianTable(
        sigma=sigma,
        largest=largest,
        distance=_distance(sigma, largest, total),
        _upper=upper,
        _lower=lower,
        _guide=guide,
    )


def _weights(sigma: float, largest: int) -> list[int]:
    """exp(-k² / 2 sigma²) · 2^256 for k = 0 .. largest, each off by less than (2k + 4)².

    Each is the one before times exp(-(2k - 1) / 2 sigma²), and so is that factor times exp(-1 / sigma²). A product
    is off by one unit more than its factors are; over k products that makes the square.
    """
    with localcontext(Context(prec=100)):  # more than 256 bits
        factor = int((-1 / (2 * Decimal(sigma) ** 2)).exp() * (1 << _FRACTION))
        square = int((-1 / Decimal(sigma) ** 2).exp() * (1 << _FRACTION))
    weights = [1 << _FRACTION]
    for _ in range(largest):
        weights.append(weights[-1] * factor >> _FRACTION)
        factor = factor * square >> _FRACTION
    return weights


def _distance(sigma: float, largest: int, total: int) -> float:
    """Total variation between the table and the discrete Gaussian: what is cut off, and what is rounded."""
    size = 2 * largest + 1
    first = math.exp(-(((largest + 1) / sigma) ** 2) / 2)
    ratio = math.exp(-(2 * largest + 3) / (2 * sigma**2))  # of each weight beyond to the one before: at most this
    cut_off = 2 * first / (1 - ratio) / (total / (1 << _FRACTION))
    # Each threshold is off by its rounding and by the weights' errors; each probability by two thresholds.
    error = 2.0**-_BITS + 2 * size * (2 * largest + 4) ** 2 * 2.0**-_FRACTION
    return (cut_off + size * error) * (1 + 1e-9)
