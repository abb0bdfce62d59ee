"""Losses on a grid, and what is read from them. Every rounding is pessimistic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

INTERVAL = 1e-3
"""Between two losses, in nats."""

# The Fourier transforms of a composition leave a rounding error in every tail: of either sign, up to 1e-16 a step in
# delta, as measured against the closed form of the Gaussian mechanism. The allowance, in delta and for each step, is
# nine times that error. Besides, long sums err by a part of what they sum.
ROUNDING = 2.0**-50
_RELATIVE_ROUNDING = 2.0**-40


@dataclass(frozen=True, eq=False)
class Pmf:
    """Probabilities of losses `lowest`, `lowest` + 1, ... in intervals, and of an infinite loss."""

    lowest: int
    masses: Floats
    infinite: float

    def deltas(self, epsilons: Floats) -> Floats:
        """The hockey-stick divergence at each epsilon."""
        from scipy.signal import lfilter

        losses = INTERVAL * (self.lowest + np.arange(len(self.masses)))
        above = np.append(np.cumsum(self.masses[::-1])[::-1], 0.0)
        # sum over l' >= l of p(l') exp(l - l'): a recurrence, which neither overflows nor cancels.
        weighed = np.append(lfilter([1.0], [1.0, -math.exp(-INTERVAL)], self.masses[::-1])[::-1], 0.0)
        first = np.searchsorted(losses, epsilons, side="right")
        gap = np.where(first < len(losses), np.append(losses, 0.0)[first] - epsilons, 0.0)
        found: Floats = self.infinite + above[first] - np.exp(-gap) * weighed[first]
        return found

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon >= 0 whose hockey-stick divergence is at most `delta`; infinite if there is none."""
        from scipy.signal import lfilter

        if self.infinite > delta:
            return math.inf
        if float(self.deltas(np.zeros(1))[0]) <= delta:
            return 0.0
        losses = INTERVAL * (self.lowest + np.arange(len(self.masses)))
        above = self.infinite + np.cumsum(self.masses[::-1])[::-1]
        weighed = lfilter([1.0], [1.0, -math.exp(-INTERVAL)], self.masses[::-1])[::-1]
        # At each loss, the divergence there; beyond the last loss where it is too large, it is solved for exactly.
        too_large = np.flatnonzero(above - weighed > delta)
        at = int(too_large[-1]) + 1 if len(too_large) else 0
        if not (weighed[at] > 0 and above[at] > delta):  # nothing but rounding errors up there
            return max(0.0, float(losses[at]))
        return max(0.0, float(losses[at] + math.log((above[at] - delta) / weighed[at])))


@dataclass(frozen=True, eq=False, kw_only=True)
class Losses:
    """The loss distributions for removing and for adding a unit, and the allowance in delta for rounding errors."""

    remove: Pmf
    add: Pmf
    rounding: float = ROUNDING

    def epsilon(self, delta: float) -> float:
        """An upper bound of epsilon at `delta`; `math.inf` if there is none."""
        left = delta / (1 + _RELATIVE_ROUNDING) - self.rounding
        return max(self.remove.epsilon(left), self.add.epsilon(left)) if left > 0 else math.inf

    def deltas(self, epsilons: Sequence[float]) -> Floats:
        """Upper bounds of delta at each epsilon >= 0, in [0, 1]."""
        at = np.asarray(epsilons, dtype=np.float64)
        worst = np.maximum(self.remove.deltas(at), self.add.deltas(at))
        return np.clip(worst * (1 + _RELATIVE_ROUNDING) + self.rounding, 0.0, 1.0)


def same(pmf: Pmf) -> Losses:
    """For a mechanism whose losses are the same for adding and removing."""
    return Losses(remove=pmf, add=pmf)
