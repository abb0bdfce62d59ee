"""Trade-off curves: what an adversary's false alarms must cost it in missed detections (Dong, Roth & Su 2019,
arXiv 1905.02383)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import stats

from privacy import accountant
from privacy.mechanisms import Release

InverseBlowUp = Callable[[float], float]
"""Of a set's probability under one data set, the least that it can have under a neighbour: 1 - f turned round."""

_LARGEST: Final = 60.0
_EPSILONS: Final = np.concatenate([np.arange(0.0, 20.0, 0.02), np.arange(20.0, _LARGEST, 0.25)])


def of_gaussian(mu: float) -> InverseBlowUp:
    """Of the Gaussian mechanism whose noise is 1 / mu times what one unit moves: G_mu (definition 2.6).

    Raises:
        ValueError: mu is negative.
    """
    if not mu >= 0:
        raise ValueError(f"mu must be at least 0, got {mu}")
    return lambda probability: float(stats.norm.cdf(stats.norm.ppf(probability) - mu))


def of_releases(releases: Iterable[Release] | Mapping[Release, int]) -> InverseBlowUp:
    """Of what a ledger charges for: from its own curve of (epsilon, delta) (proposition 2.12).

    A set of probability y is at least e^-epsilon (y - delta) likely under a neighbour, and unlikely by at most
    e^epsilon (1 - y) + delta, at each epsilon. Those that are looked at are finitely many, so what comes out is
    nowhere more than the claim demands: whatever contradicts it contradicts the claim.

    Raises:
        ValueError: the releases can't be priced.
    """
    deltas = np.asarray(accountant.deltas_for(releases, _EPSILONS.tolist()))
    grow = np.exp(_EPSILONS)

    def inverse(probability: float) -> float:
        likely = float(np.max((probability - deltas) / grow))
        unlikely = float(np.max(1 - deltas - grow * (1 - probability)))
        return max(0.0, likely, unlikely)

    return inverse


@dataclass(frozen=True)
class GaussianPrivacy:
    """Conversions between mu and (epsilon, delta) of a Gaussian mechanism.

    Attributes:
        mu: >= 0.
    """

    mu: float

    def delta(self, epsilon: float) -> float:
        """At epsilon (Balle & Wang 2018, arXiv 1805.06530, theorem 8)."""
        if self.mu == 0:
            return 0.0
        half, ratio = self.mu / 2, epsilon / self.mu
        return float(stats.norm.cdf(half - ratio) - np.exp(epsilon + stats.norm.logcdf(-half - ratio)))

    def epsilon(self, delta: float) -> float:
        """The least epsilon at delta, to 1e-9."""
        if self.delta(0.0) <= delta:
            return 0.0
        low, high = 0.0, 1.0
        while self.delta(high) > delta:
            low, high = high, 2 * high
        while high - low > 1e-9 * max(1.0, high):
            middle = (low + high) / 2
            low, high = (middle, high) if self.delta(middle) > delta else (low, middle)
        return high
