"""Whole numbers drawn from a table of their distribution.

The table holds the distribution function as integers of 128 bits; a draw is the number of entries that a uniform
integer of 128 bits has reached. What the table cuts off or rounds is bounded as a distance in total variation
(`privacy.table_distance`), which belongs into delta (rule 9).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from privacy.table_distance import BITS

_GUIDE = 16  # the first bits of a draw say between which thresholds it falls (Chen & Asau 1974)


@dataclass(frozen=True, kw_only=True, eq=False)
class NoiseTable:
    """A distribution that is symmetric around zero.

    Attributes:
        largest: the largest magnitude that is ever drawn.
        distance: bound on the total variation between one draw and the true distribution.
    """

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


class Thresholds(TypedDict):
    """What a table is made of."""

    _upper: NDArray[np.uint64]
    _lower: NDArray[np.uint64]
    _guide: NDArray[np.int32]


def thresholds(weights: list[int]) -> Thresholds:
    """Of a distribution that gives 0, 1 .. weights in these proportions, and the same to -1, -2 ..: at least one."""
    values = [*weights[:0:-1], *weights]
    total = sum(values)
    found, cumulative = [], 0
    for weight in values[:-1]:
        cumulative += weight
        found.append((cumulative << BITS) // total)
    upper = np.array([threshold >> 64 for threshold in found], dtype=np.uint64)
    lower = np.array([threshold & (1 << 64) - 1 for threshold in found], dtype=np.uint64)
    starts = np.arange(1 << _GUIDE, dtype=np.uint64) << np.uint64(64 - _GUIDE)
    guide = np.append(np.searchsorted(upper, starts), len(upper)).astype(np.int32)
    return Thresholds(_upper=upper, _lower=lower, _guide=guide)
