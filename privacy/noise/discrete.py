"""The discrete Gaussian (Canonne, Kamath, Steinke 2020, arXiv 2004.00010) by a table of its distribution.

P(k) is proportional to exp(-k² / 2 sigma²) over the whole numbers. Unlike a rounded Gaussian it has published
bounds for the *sum* of several parties' draws (Kairouz, Liu, Steinke 2021, arXiv 2102.06387, for secure sums).
"""

from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache

from privacy.noise.table import NoiseTable, thresholds
from privacy.table_distance import FRACTION, discrete_gaussian_distance, discrete_gaussian_largest

SMALLEST_SIGMA, LARGEST_SIGMA = 2.0**-3, 2.0**16


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscreteGaussianTable(NoiseTable):
    """The table for one sigma.

    Attributes:
        sigma: parameter of the distribution, nearly its standard deviation.
    """

    sigma: float


@lru_cache(maxsize=8)
def discrete_gaussian_table(sigma: float) -> DiscreteGaussianTable:
    """The table for `sigma`, made once in a process (sigma 1000: 15 ms; 2^16: a second).

    Raises:
        ValueError: if sigma is not between 2^-3 and 2^16.
    """
    if not SMALLEST_SIGMA <= sigma <= LARGEST_SIGMA:
        raise ValueError(f"the sigma of a discrete Gaussian must be between 2^-3 and 2^16, got {sigma}")
    largest = discrete_gaussian_largest(sigma)
    return DiscreteGaussianTable(
        sigma=sigma,
        largest=largest,
        distance=discrete_gaussian_distance(sigma),
        **thresholds(_weights(sigma, largest)),
    )


def _weights(sigma: float, largest: int) -> list[int]:
    """exp(-k² / 2 sigma²) · 2^256 for k = 0 .. largest, each off by less than (2k + 4)².

    Each is the one before times exp(-(2k - 1) / 2 sigma²), and so is that factor times exp(-1 / sigma²). A product
    is off by one unit more than its factors are; over k products that makes the square.
    """
    with localcontext(Context(prec=100)):  # more than 256 bits
        factor = int((-1 / (2 * Decimal(sigma) ** 2)).exp() * (1 << FRACTION))
        square = int((-1 / Decimal(sigma) ** 2).exp() * (1 << FRACTION))
    weights = [1 << FRACTION]
    for _ in range(largest):
        weights.append(weights[-1] * factor >> FRACTION)
        factor = factor * square >> FRACTION
    return weights
