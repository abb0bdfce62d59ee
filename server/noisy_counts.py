"""Accuracy from the noisy counts of many clients, with an interval that covers both noise and chance.

Each client says how many of its held-out examples the model got right, and how many there are, each with noise of a
public standard deviation. The sums are unbiased; their ratio is the estimate, and Fieller's theorem (Fieller 1954,
J. R. Stat. Soc. B 16) gives its interval: all p for which C - p T is within z standard deviations of zero, its variance
being K s^2 (1 + p^2) from the noise of K clients and T p (1 - p) from sampling. Without noise this is Wilson's score
interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one client says: numbers of right and of all held-out examples, with noise; either may be negative."""

    correct: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An accuracy, and the interval that holds the true one with the stated confidence; None where nothing is known."""

    value: float | None
    low: float
    high: float


def accuracy(counts: Sequence[Counts], *, noise: float, confidence: float = 0.95) -> Estimate:
    """Accuracy over all clients' held-out examples.

    Args:
        counts: one a client.
        noise: standard deviation of the noise in each number, in examples; 0 for exact counts.
        confidence: of the interval, in (0, 1).
    """
    from scipy.special import ndtri

    correct, total = sum(c.correct for c in counts), sum(c.total for c in counts)
    if total <= 0:
        return Estimate(value=None, low=0.0, high=1.0)
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    variance = noise**2 + 1 / 12 if noise > 0 else 0.0  # of a rounded draw, nearly
    spread = z2 * len(counts) * variance
    # (C - p T)^2 <= z^2 (K s^2 (1 + p^2) + T p (1 - p)), a quadratic in p.
    a = total**2 - spread + z2 * total
    b = -(2 * correct * total + z2 * total)
    c = correct**2 - spread
    discriminant = b * b - 4 * a * c
    value = min(1.0, max(0.0, correct / total))
    if a <= 0 or discriminant < 0:  # the noise drowns the total: any accuracy is possible
        return Estimate(value=value, low=0.0, high=1.0)
    root = math.sqrt(discriminant)
    low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
    # Where counts contradict themselves (more right than there are) the value may lie a hair outside.
    return Estimate(value=value, low=min(value, max(0.0, low)), high=max(value, min(1.0, high)))
