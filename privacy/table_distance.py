"""How far draws of noise are from the distribution they stand for: in closed form, without drawing.

Discrete noise for a secure sum is drawn from tables with thresholds of 128 bits (`privacy.noise`). A table cuts off the
tails and rounds the rest; rounded Gaussian noise is exact but for its tails, which are cut off too. Both are bounded
here as a distance in total variation, which an accountant takes out of delta (rule 9). The bounds need the deviation
alone, so whoever prices a release need not make its table.
"""

import math
from functools import lru_cache

BITS = 128
"""Of a threshold."""

FRACTION = 256
"""Binary digits of a discrete Gaussian's weight while its table is made."""

_REACH = 13.5  # in sigma: what lies beyond weighs less than 2^-128
_CUT_OFF = -130 * math.log(2)


def discrete_gaussian_largest(sigma: float) -> int:
    """The largest magnitude in the table of a discrete Gaussian."""
    return math.ceil(_REACH * sigma)


def cut_off_normal_largest(scale: float) -> int:
    """The largest magnitude that a Gaussian of that deviation, rounded to whole numbers, is cut off to."""
    return math.ceil(_REACH * scale)


def cut_off_normal_distance() -> float:
    """Total variation between a rounded Gaussian and one that is cut off: the chance to be beyond."""
    return math.erfc(_REACH / math.sqrt(2)) * (1 + 1e-9)


def discrete_gaussian_distance(sigma: float) -> float:
    """Total variation between one draw from the table and the discrete Gaussian: what is cut off, what is rounded."""
    largest = discrete_gaussian_largest(sigma)
    size = 2 * largest + 1
    first = math.exp(-(((largest + 1) / sigma) ** 2) / 2)
    ratio = math.exp(-(2 * largest + 3) / (2 * sigma**2))  # of each weight beyond to the one before: at most this
    # All weights sum to sigma sqrt(2 pi) at least, by Poisson's summation formula, and to 1, the one at zero. What the
    # table leaves out of that sum is far below the last factor.
    cut_off = 2 * first / (1 - ratio) / max(1.0, sigma * math.sqrt(2 * math.pi))
    # Each threshold is off by its rounding and by the weights' errors; each probability by two thresholds.
    error = 2.0**-BITS + 2 * size * (2 * largest + 4) ** 2 * 2.0**-FRACTION
    return (cut_off + size * error) * (1 + 1e-9)


def delta_of_distance(distance: float, *, draws: int = 1, epsilon: float) -> float:
    """What is to be added to delta because draws are off by `distance` each, in total variation.

    If a release with true noise is (epsilon, delta)-private and `draws` values of its noise are each within
    `distance`, then P'(S) <= P(S) + t <= e^epsilon Q(S) + delta + t <= e^epsilon (Q'(S) + t) + delta + t, with
    t = draws · distance.
    """
    if distance == 0:
        return 0.0
    # Beyond the largest float nothing can be claimed.
    return draws * distance * (1 + math.exp(epsilon)) if epsilon < 700 else math.inf


@lru_cache(maxsize=256)
def skellam_largest(deviation: float) -> int:
    """The largest magnitude in the table of Skellam noise: what lies beyond weighs less than 2^-129."""
    low, high = 0, 1
    while _skellam_tail(high, deviation) > _CUT_OFF:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _skellam_tail(middle, deviation) > _CUT_OFF else (low, middle)
    return high - 1


def skellam_distance(deviation: float) -> float:
    """Total variation between one draw from the table and Skellam noise: what is cut off, what is rounded.

    The errors of the weights themselves sum to less than 2^-128, which whoever makes a table checks.
    """
    largest = skellam_largest(deviation)
    cut_off = 2 * math.exp(_skellam_tail(largest + 1, deviation))
    return (cut_off + (2 * largest + 2) * 2.0**-BITS) * (1 + 1e-9)


def _skellam_tail(value: int, deviation: float) -> float:
    """Logarithm of a bound on the chance that Skellam noise is at least `value`.

    Chernoff: E exp(t X) = exp(v (cosh t - 1)) with v the variance, at its best t, where sinh t = value / v.
    """
    v = deviation**2
    return value**2 / (math.hypot(v, value) + v) - value * math.asinh(value / v)
