"""The sum that a trusted server makes of clients' updates, and the noise it adds: in whole numbers throughout (rule 9).

Every update is clipped here, whatever its sender did, and put on the grid (`privacy.release_grid`); integers add up the
same in any order, and the memory is that of one vector. One client more or less moves the sum by at most
`grid.steps`, in L2: checked for each vector without rounding errors, in whole numbers. What is released is the sum
with a Gaussian rounded to the grid; all that comes after, the division by a public number included, is made of that.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privacy.noise import NoiseSource
from privacy.release_grid import ReleaseGrid

Vector = npt.NDArray[np.float32]
Whole = npt.NDArray[np.int64]

_SHORTER = 1 - 2.0**-20  # for a vector that float64 made longer than the grid allows: never seen


class SumNoise(Protocol):
    """What makes a release of a sum. Correlated noise keeps a secret state between rounds; independent noise none."""

    def noisy(self, total: Whole) -> Whole:
        """The sum as it may be released; once for each charged round, in their order."""

    def settle(self, released: Vector) -> None:
        """Is told what was made of that sum, before it is committed: what later rounds need is on the disk when this
        returns."""

    def recall(self, released: Vector) -> None:
        """Is told instead what was committed, of a round that is over and played again after a crash."""


class IndependentNoise:
    """Fresh Gaussian noise in every round, of `grid.noise_scale` steps.

    Args:
        grid: of the plan.
        source: where it comes from.
    """

    def __init__(self, grid: ReleaseGrid, source: NoiseSource) -> None:
        self._grid = grid
        self._source = source

    def noisy(self, total: Whole) -> Whole:
        """The sum with noise."""
        noise: Whole = self._source.grid_normal(total.shape, self._grid.noise_scale).numpy()
        return total + noise

    def settle(self, released: Vector) -> None:
        """Nothing is left of a round."""

    def recall(self, released: Vector) -> None:
        """Nothing is left of a round."""


class ClippedSum:
    """Adds up updates of one length, each clipped to the grid's norm.

    Args:
        grid: of the plan.
        size: number of values of an update.
    """

    def __init__(self, grid: ReleaseGrid, size: int) -> None:
        self._grid = grid
        self._total: Whole = np.zeros(size, np.int64)

    def add(self, update: Vector) -> None:
        """Add an update; one that is not finite counts as zeros (rule 5).

        Raises:
            ValueError: it has another length.
        """
        if update.shape != self._total.shape:
            raise ValueError(f"an update of {update.shape} values is none of {self._total.shape}")
        self._total += on_grid(update, self._grid)

    @property
    def total(self) -> Whole:
        """The sum so far, without noise: not to be released."""
        return self._total.copy()


def on_grid(update: Vector, grid: ReleaseGrid) -> Whole:
    """An update in whole steps, no longer than the clipping norm; zeros if it is not finite."""
    vector = clipped(update.astype(np.float64) / grid.step, grid.norm)
    found = np.rint(vector).astype(np.int64)
    if _square(found) > grid.steps**2:
        found = np.trunc(vector * _SHORTER).astype(np.int64)  # towards zero makes none longer
    if _square(found) > grid.steps**2:
        raise AssertionError("a clipped update is longer than the clipping norm")
    return found


def clipped(vector: npt.NDArray[np.float64], norm: float) -> npt.NDArray[np.float64]:
    """A vector shortened to an L2 norm if it is longer; zeros if it is not finite."""
    length = math.sqrt(float(vector @ vector))  # of float32 values in steps, squares neither over- nor underflow
    if not math.isfinite(length):
        return np.zeros_like(vector)
    return vector * (norm / length) if length > norm else vector


def mean_of(noisy: Whole, grid: ReleaseGrid, expected: float) -> Vector:
    """What a released sum says of the mean update.

    Args:
        noisy: the sum with noise.
        grid: of the plan.
        expected: how many updates are expected, a public number (rule 1).

    Raises:
        ValueError: none is expected.
    """
    if not expected > 0:
        raise ValueError(f"a mean needs an expected number of updates above 0, got {expected}")
    return np.asarray(noisy.astype(np.float64) * (grid.step / expected), dtype=np.float32)


def _square(whole: Whole) -> int:
    return int(whole @ whole)
