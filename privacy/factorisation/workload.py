"""What is made of a run's noisy updates: prefix sums, for that is what a model is."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.mechanisms.release import count, finite

_FRACTION = 192  # binary digits of a root's terms, in whole numbers: so every machine finds the same


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The lower-triangular matrix A whose row t says how the model after round t depends on rounds 1 .. t.

    Without momentum the model is the sum of all updates. With momentum m it is the sum of V_1 .. V_t, where
    V_t = m V_(t-1) + update t. A constant server learning rate changes no ratio. A is Toeplitz: the entry t - j below
    the diagonal is 1 + m + .. + m^(t-j).

    Attributes:
        rounds: n, >= 1.
        momentum: m, in [0, 1).

    Raises:
        ValueError: if a value is out of range.
    """

    rounds: int
    momentum: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounds", count("rounds", self.rounds))
        object.__setattr__(self, "momentum", finite("momentum", self.momentum))
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {self.momentum}")

    def matrix(self) -> NDArray[np.float64]:
        """A, of n rows and n columns."""
        column = np.cumsum(self.momentum ** np.arange(self.rounds))
        return np.tril(column[np.abs(np.subtract.outer(np.arange(self.rounds), np.arange(self.rounds)))])

    def root(self, terms: int) -> list[int]:
        """The first column of A's square root, in units of 2^-192: the same on every machine.

        Its terms are those of the power series of ((1 - x)(1 - m x))^(-1/2), a product of two binomial series (without
        momentum: Fichtenberger, Henzinger & Upadhyay 2022, arXiv 2202.11205).
        """
        one = 1 << _FRACTION
        plain = [one]
        for k in range(1, terms):
            plain.append(plain[-1] * (2 * k - 1) // (2 * k))
        if not self.momentum:
            return plain
        numerator, divisor = self.momentum.as_integer_ratio()
        power, damped = one, []
        for term in plain:
            damped.append(term * power >> _FRACTION)
            power = power * numerator // divisor
        return [sum(plain[i] * damped[k - i] for i in range(k + 1)) >> _FRACTION for k in range(terms)]


def unit_column(terms: list[int], digits: int) -> list[int]:
    """Whole numbers in proportion to `terms`, whose length is 2^digits but for rounding: to the nearest."""
    length = math.isqrt(sum(term * term for term in terms))
    return [((term << (digits + 1)) // length + 1) // 2 for term in terms]
