"""The matrix C of a banded factorisation, in whole numbers, and what it is worth.

A run's model is a linear function A x of the updates x_1 .. x_n of its rounds. Instead of noise z_t on every x_t by
itself, one releases C x + z and computes x + C^-1 z from it: for the price of C x with independent noise, the
errors of different rounds partly cancel in A (x + C^-1 z). C is lower triangular with b diagonals ("bands").

**Sensitivity.** A column of C is zero outside b consecutive rows. If two participations of a client are b rounds apart
at least, their columns share no row. So if a client's contributions u_j, one for each round j in which it takes part,
are no longer than 1, then C x moves by a vector of squared length sum_j |u_j|^2 |c_j|^2, and at most by the largest sum
of squared column norms over all patterns that `Participation` allows: sqrt(k) for unit columns (Choquette-Choo et al.
2023, arXiv 2306.08153). It is computed exactly, in whole numbers.

**Whole numbers.** Entries of C are multiples of 2^-10, kept as whole numbers of those. So C times whole numbers is a
whole number of 2^-10 steps: no rounding (`privacy.factorisation.noise_stream` says what that is good for). What
rounding the entries costs is a tenth of a percent of accuracy; the sensitivity is that of the rounded entries.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.factorisation.participation import Participation
from privacy.factorisation.workload import Workload, unit_column

DIGITS = 10
"""Binary digits of an entry behind the point."""

_FINER = 64  # more binary digits than a float has
_LARGEST = 1 << 20  # of an entry, in its unit
_DOMAIN = b"veil banded matrix 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class BandedMatrix:
    """A lower-triangular matrix with b bands: entries are whole numbers of 2^-10.

    Attributes:
        columns: int64, n rows of b: `columns[j, i]` is the entry of column j, i rows below the diagonal. What would be
            below the last row is 0.

    Raises:
        ValueError: if it has another form, or a diagonal entry below 1 (there would be no inverse).
    """

    columns: NDArray[np.int64]

    def __post_init__(self) -> None:
        if self.columns.ndim != 2 or self.columns.dtype != np.int64:
            raise ValueError("a banded matrix is a table of whole numbers, one row a column")
        rounds, band = self.columns.shape
        if not 1 <= band <= rounds:
            raise ValueError(f"a matrix of {rounds} rounds has 1 to {rounds} bands, got {band}")
        if np.any(self.columns[~inside_of(rounds, band)]):
            raise ValueError("a banded matrix has entries below its last row")
        if self.columns[:, 0].min() < 1 or np.abs(self.columns).max() > _LARGEST:
            raise ValueError("a banded matrix has entries of at most 2^10, and above 0 on its diagonal")
        own = self.columns.copy()
        own.setflags(write=False)
        object.__setattr__(self, "columns", own)

    @property
    def rounds(self) -> int:
        """n, number of rows and of columns."""
        return int(self.columns.shape[0])

    @property
    def band(self) -> int:
        """b, number of diagonals."""
        return int(self.columns.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the entries and their unit: names the matrix."""
        head = b"%s %d %d %d\n" % (_DOMAIN, DIGITS, self.rounds, self.band)
        return hashlib.sha256(head + self.columns.astype("<i8").tobytes()).hexdigest()

    def row(self, t: int) -> list[int]:
        """Entries of row t (from 0), from the diagonal to the left: at most b of them, whole numbers of 2^-10."""
        return [int(self.columns[t - i, i]) for i in range(min(self.band, t + 1))]

    def dense(self) -> NDArray[np.float64]:
        """C itself: every entry is a float without rounding."""
        return dense_of(self.columns) * 2.0**-DIGITS


def square_root(workload: Workload, band: int) -> BandedMatrix:
    """The first `band` diagonals of A's square root, each column scaled to length 1: the same on every machine.

    (Truncated: Choquette-Choo et al. 2023; the root itself is optimal but for a constant: Fichtenberger, Henzinger &
    Upadhyay 2022, arXiv 2202.11205; Dvijotham et al. 2024, arXiv 2404.16706.) Within a few percent of `optimised`.

    Raises:
        ValueError: if the band is not one of 1 .. rounds.
    """
    rounds = workload.rounds
    if not 1 <= band <= rounds:
        raise ValueError(f"a matrix of {rounds} rounds has 1 to {rounds} bands, got {band}")
    root = workload.root(band)
    columns = np.zeros((rounds, band), dtype=np.int64)
    whole = unit_column(root, DIGITS)
    for j in range(rounds):
        below = min(band, rounds - j)
        columns[j, :below] = whole if below == band else unit_column(root[:below], DIGITS)
    return BandedMatrix(columns=columns)


def squared_sensitivity(matrix: BandedMatrix, participation: Participation) -> int:
    """The largest sum of squared column norms over all patterns, in units of 2^-20: exact.

    Raises:
        ValueError: if the matrix is of another number of rounds, or two participations may be closer than its band.
    """
    if matrix.rounds != participation.rounds:
        raise ValueError(f"a matrix of {matrix.rounds} rounds is none of {participation.rounds}")
    if matrix.band > participation.separation:
        raise ValueError(
            f"a matrix of {matrix.band} bands needs as many rounds between a client's participations at least, got "
            f"{participation.separation}"
        )
    return participation.heaviest(np.sum(matrix.columns**2, axis=1).tolist())


def sensitivity(matrix: BandedMatrix, participation: Participation) -> float:
    """How far one client's contributions of length 1 can move C x, at most: rounded up.

    Raises:
        ValueError: as for `squared_sensitivity`.
    """
    finer = math.isqrt(squared_sensitivity(matrix, participation) << 2 * _FINER) + 1  # above the root
    return math.ldexp(math.nextafter(float(finer), math.inf), -_FINER - DIGITS)


def rms_error(matrix: BandedMatrix, participation: Participation, workload: Workload) -> float:
    """Root of the mean squared error of A x, over all rounds, for a noise multiplier and a clipping norm of 1.

    Compare with `independent_error` for what the matrix is worth: both cost the same.

    Raises:
        ValueError: as for `squared_sensitivity`, or if the workload is of another number of rounds.
    """
    if workload.rounds != matrix.rounds:
        raise ValueError(f"a workload of {workload.rounds} rounds is none of {matrix.rounds}")
    spread = np.linalg.solve(matrix.dense().T, workload.matrix().T)
    return sensitivity(matrix, participation) * math.sqrt(float(np.sum(spread**2)) / matrix.rounds)


def independent_error(participation: Participation, workload: Workload) -> float:
    """The same for independent noise in every round: sqrt(k) times what a client can move in one round."""
    return math.sqrt(participation.most * float(np.sum(workload.matrix() ** 2)) / workload.rounds)


def inside_of(rounds: int, band: int) -> NDArray[np.bool_]:
    """Which entries of a table of columns are in the matrix, and not below its last row."""
    return np.add.outer(np.arange(rounds), np.arange(band)) < rounds


def dense_of(columns: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The square matrix of a table of columns, in the table's unit."""
    rounds, band = columns.shape
    found = np.zeros((rounds, rounds))
    for i in range(band):
        found[np.arange(i, rounds), np.arange(rounds - i)] = columns[: rounds - i, i]
    return found
