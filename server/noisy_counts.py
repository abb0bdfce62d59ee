"""Accuracy from the noisy counts of many clients, with an interval that covers both noise and chance.

Each client says how many of its held-out examples the model got right, and how many there are, each with noise of a
public standard deviation. The sums are unbiased; their ratio is the estimate, and Fieller's theorem (Fieller 1954,
J. R. Stat. Soc. B 16) gives its interval: all p for which C - p T is within z standard deviations of zero, its variance
being K s^2 (1 + p^2) from the noise of K clients and T p (1 - p) from sampling. Without noise this is Wilson's score
interval.

Where both are sums over cells of one table, C over n of them and T over these and others, w in all, they share noise:
C - p T has n cells with weight 1 - p and w - n with weight -p, and so K s^2 (n (1 - p)^2 + (w - n) p^2) of it.
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
    correct, total = sum(c.correct for c in counts), sum(c.total for c in counts)
    spread = len(counts) * _variance(noise)
    return _fieller(correct, total, (spread, 0.0, spread), confidence)


def ratio_of_cells(
    part: int, whole: int, *, cells: tuple[int, int], clients: int, noise: float, confidence: float = 0.95
) -> Estimate:
    """The part that some cells of a table have of these and others.

    Args:
        part, whole: what the cells say, added up over all clients.
        cells: how many are in `part`, and in `whole`.
        clients: that gave a table.
        noise: standard deviation of the noise in each of a client's cells; 0 for exact ones.
        confidence: of the interval, in (0, 1).
    """
    spread, (n, w) = clients * _variance(noise), cells
    return _fieller(part, whole, (spread * n, -2 * spread * n, spread * w), confidence)


def _variance(noise: float) -> float:
    return noise**2 + 1 / 12 if noise > 0 else 0.0  # of a rounded draw, nearly


def _fieller(correct: int, total: int, spread: tuple[float, float, float], confidence: float) -> Estimate:
    """All p with (C - p T)^2 <= z^2 (v0 + v1 p + v2 p^2 + T p (1 - p)), a quadratic in p, where `spread` is v."""
    from scipy.special import ndtri

    if total <= 0:
        return Estimate(value=None, low=0.0, high=1.0)
    z2 = float(ndtri((1 + confidence) / 2)) ** 2
    a = total**2 - z2 * spread[2] + z2 * total
    b = -(2 * correct * total + z2 * spread[1] + z2 * total)
    c = correct**2 - z2 * spread[0]
    discriminant = b * b - 4 * a * c
    value = min(1.0, max(0.0, correct / total))
    if a <= 0 or discriminant < 0:  # the noise drowns the total: any part is possible
        return Estimate(value=value, low=0.0, high=1.0)
    root = math.sqrt(discriminant)
    low, high = (-b - root) / (2 * a), (-b + root) / (2 * a)
    # Where counts contradict themselves (more right than there are) the value may lie a hair outside.
    return Estimate(value=value, low=min(value, max(0.0, low)), high=max(value, min(1.0, high)))
