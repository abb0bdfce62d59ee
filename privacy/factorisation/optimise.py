"""A better C than the square root: by descent on the error itself."""

import numpy as np
from numpy.typing import NDArray

from privacy.factorisation.banded import DIGITS, BandedMatrix, dense_of, inside_of, square_root
from privacy.factorisation.workload import Workload

MOST_ROUNDS = 2000
"""Each of some hundred steps takes the time of a few products of matrices of that size."""

_STEPS = 1000


def optimised(workload: Workload, band: int) -> BandedMatrix:
    """The banded matrix with columns of length 1 that has the least mean squared error of A x, nearly.

    L-BFGS from `square_root` on |A C^-1|^2 (Choquette-Choo et al. 2023, arXiv 2306.08153), whose gradient
    is -2 (A C^-1)^T (A C^-1) C^-T inside the bands; entries are then rounded. The result is public, but the last digits
    of an entry may differ between machines: hand the matrix on, or pin its digest.

    Raises:
        ValueError: if the band is not one of 1 .. rounds, or there are more than 2,000 rounds.
    """
    from scipy.optimize import minimize

    if workload.rounds > MOST_ROUNDS:
        raise ValueError(f"a matrix is optimised for {MOST_ROUNDS} rounds at most, got {workload.rounds}")
    start = square_root(workload, band)
    if band == 1:
        return start  # its columns have length 1: there is nothing to choose
    a, inside = workload.matrix(), inside_of(workload.rounds, band)
    first = start.columns.astype(np.float64) * 2.0**-DIGITS
    scale = error_and_gradient(first, a)[0]

    def goal(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        raw = np.zeros(inside.shape)
        raw[inside] = flat
        error, gradient = error_and_gradient(raw, a)
        return error / scale, gradient[inside] / scale

    options = {"maxiter": _STEPS, "maxfun": 2 * _STEPS, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-9}
    best = minimize(goal, first[inside], jac=True, method="L-BFGS-B", options=options)
    raw = np.zeros(inside.shape)
    raw[inside] = best.x
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    whole = np.rint(unit * 2.0**DIGITS).astype(np.int64)
    if not (np.isfinite(unit).all() and whole[:, 0].min() >= 1 and best.fun < 1):
        return start
    return BandedMatrix(columns=whole)


def error_and_gradient(raw: NDArray[np.float64], a: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    """The squared Frobenius norm of A C^-1, and its derivative by `raw`: C has the columns of `raw`, made unit.

    Args:
        raw: n rows of b, as in `BandedMatrix.columns`; below the last row 0.
        a: the workload's matrix.
    """
    from scipy.linalg import solve_triangular

    rounds, band = raw.shape
    length = np.linalg.norm(raw, axis=1, keepdims=True)
    unit = raw / length
    c = dense_of(unit)
    spread = solve_triangular(c.T, a.T, lower=False).T  # A C^-1
    by_c = -2 * solve_triangular(c, spread.T @ spread, lower=True).T
    gradient = np.zeros(raw.shape)
    for i in range(band):
        gradient[: rounds - i, i] = by_c[np.arange(i, rounds), np.arange(rounds - i)]
    along = np.sum(gradient * unit, axis=1, keepdims=True)  # a column's length doesn't matter
    return float(np.sum(spread**2)), (gradient - along * unit) / length
