"""Whitening by the second moments of public images.

A private step adds as much noise in every direction; what the data says is better heard where no direction of the
features is much longer than another. Mean and covariance come from public images alone, so they cost no privacy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FLOOR = 0.1  # added to the eigenvalues, a part of their mean: directions that public images lack are not blown up
POWER = -0.35  # -0.5 would be full whitening; chosen with noise, on held-out images


class Moments:
    """Mean and covariance of rows that come in parts; holds two matrices (d, d).

    Args:
        size: d, values of a row.
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._sum = np.zeros(size)
        self._products: npt.NDArray[np.float64] = np.zeros((size, size))

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Count in some rows (n, d)."""
        self._count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._products += rows.T @ rows

    def mean(self) -> npt.NDArray[np.float64]:
        """Mean (d,)."""
        return self._sum / self._count

    def covariance(self) -> npt.NDArray[np.float64]:
        """Covariance (d, d); the sums are given up for it."""
        mean = self.mean()
        found, self._products = self._products, np.empty((0, 0))
        found /= self._count
        for row in range(len(found)):  # an outer product would be a third matrix
            found[row] -= mean[row] * mean
        return found


def whitener(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The symmetric matrix U (lambda + .1 mean lambda)^-.35 U^T of a covariance U lambda U^T; that is overwritten."""
    from scipy import linalg

    values, vectors = linalg.eigh(covariance, overwrite_a=True, check_finite=False, driver="evd")
    values = np.clip(values, 0, None)  # a rank too low shows as values a little below zero
    half = vectors * (values + FLOOR * values.mean()) ** (POWER / 2)
    return np.asarray(half @ half.T, dtype=np.float32)
