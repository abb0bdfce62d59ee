"""How well two worlds are told apart by one figure, as a curious observer would: with a threshold, chosen before.

Half of the trials of both worlds choose which side is which and the threshold that is right most often; the other half
are counted, so that the figures are those of trials that nobody has looked at. Chance is right in half of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]

ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a figure tells of which world it is from.

    Attributes:
        auc: probability that a figure of the one world is above one of the other, 0.5 for nothing; of all trials, the
            side chosen by the first half.
        accuracy: part of the counted trials that the threshold gets right; both worlds weigh the same.
        low, high: its interval (Clopper & Pearson 1934), right with probability 0.95.
        trials: that were counted.
    """

    auc: float
    accuracy: float
    low: float
    high: float
    trials: int

    @property
    def tells(self) -> bool:
        """Whether chance alone is ruled out."""
        return self.low > 0.5


def told_apart(one: Floats, other: Floats) -> Told:
    """How well figures of two worlds are told apart.

    Args:
        one, other: as many of each, in the order in which they were measured; at least four.

    Raises:
        ValueError: too few, or not as many.
    """
    if len(one) != len(other) or len(one) < 4:
        raise ValueError(f"{len(one)} and {len(other)} trials: as many of each world are needed, four at least")
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    # Every second trial: a machine that gets slower meanwhile is in both halves.
    sign = 1.0 if _auc(one[::2], other[::2]) >= 0.5 else -1.0
    threshold = _best_threshold(sign * one[::2], sign * other[::2])
    right = int(np.sum(sign * one[1::2] > threshold)) + int(np.sum(sign * other[1::2] <= threshold))
    counted = 2 * len(one[1::2])
    low, high = clopper_pearson(right, counted)
    auc = _auc(sign * one, sign * other)
    return Told(auc=auc, accuracy=right / counted, low=low, high=high, trials=counted)


def clopper_pearson(right: int, of: int) -> tuple[float, float]:
    """The interval of a proportion that is exact (Clopper & Pearson 1934), right with probability 1 - `ALPHA`."""
    found = stats.binomtest(right, of).proportion_ci(confidence_level=1 - ALPHA, method="exact")
    return float(found.low), float(found.high)


def _best_threshold(above: Floats, below: Floats) -> float:
    """Where figures of the one world are above, and of the other not above, most often; of several the middle one."""
    tried = np.unique(np.concatenate([above, below]))
    right = (above[:, None] > tried).sum(0) + (below[:, None] <= tried).sum(0)
    best = np.flatnonzero(right == right.max())
    return float(tried[best[len(best) // 2]])


def _auc(one: Floats, other: Floats) -> float:
    """Mann and Whitney's statistic over all pairs; ties count half."""
    ranks = stats.rankdata(np.concatenate([one, other]))
    above = ranks[: len(one)].sum() - len(one) * (len(one) + 1) / 2
    return float(above / (len(one) * len(other)))
