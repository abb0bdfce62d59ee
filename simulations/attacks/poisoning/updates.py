"""What attackers make of updates: flat vectors, float32 (d,), and nothing else."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


def times(update: Vector, factor: float) -> Vector:
    """An update made longer, or turned round; what exceeds float32 becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(update.astype(np.float64) * factor).astype(np.float32)


def little_is_enough(honest: Sequence[Vector], deviations: float) -> Vector:
    """The mean of the attackers' own honest updates less so many of their deviations, coordinate by coordinate.

    Baruch, Baruch & Goldberg 2019 (arXiv 1902.06156, algorithm 3). One attacker alone knows no deviation, and sends its
    honest update.

    Raises:
        ValueError: there is no update.
    """
    if not honest:
        raise ValueError("attackers without an update know no mean")
    stacked = np.stack(honest).astype(np.float64)
    return np.asarray(stacked.mean(axis=0) - deviations * stacked.std(axis=0)).astype(np.float32)


def most_deviations(clients: int, attackers: int) -> float:
    """z_max: how far off the mean enough honest clients are for a majority around the attackers.

    With n clients and m attackers, s = floor(n / 2 + 1) - m honest ones have to be farther out; z_max is where the
    normal distribution function reaches (n - m - s) / (n - m) (the same, section 3). None are needed from a majority of
    attackers on: infinite in the paper, 3 here.

    Raises:
        ValueError: there are no attackers, or nobody else.
    """
    if not 0 < attackers < clients:
        raise ValueError(f"{attackers} attackers among {clients} clients: give some, and leave some")
    supporters = math.floor(clients / 2 + 1) - attackers
    honest = clients - attackers
    if supporters <= 0:
        return 3.0
    part = (honest - supporters) / honest
    return max(0.0, statistics.NormalDist().inv_cdf(part)) if part > 0 else 0.0


def noise_like(size: int, deviation: float, *, seed: int) -> Vector:
    """Gaussian noise in place of an update."""
    return (np.random.default_rng(seed).standard_normal(size) * deviation).astype(np.float32)
