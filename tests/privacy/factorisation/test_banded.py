"""The matrix C: its sensitivity is exact, and it is worth what the papers say."""

import math
from fractions import Fraction

import numpy as np
import pytest

from privacy.factorisation import (
    BandedMatrix,
    Participation,
    Workload,
    independent_error,
    rms_error,
    sensitivity,
    square_root,
)
from privacy.factorisation.banded import DIGITS, squared_sensitivity
from tests.privacy.factorisation.test_participation import patterns


def uneven(rounds: int, band: int, seed: int = 0) -> BandedMatrix:
    """Entries of either sign, and columns of unlike lengths."""
    columns = np.random.default_rng(seed).integers(-900, 900, (rounds, band))
    columns[:, 0] = np.abs(columns[:, 0]) + 1
    columns[np.add.outer(np.arange(rounds), np.arange(band)) >= rounds] = 0
    return BandedMatrix(columns=columns)


@pytest.mark.parametrize(
    ("rounds", "band", "separation", "most"), [(8, 2, 2, 9), (8, 3, 3, 2), (9, 2, 4, 9), (6, 1, 1, 3)]
)
def test_the_sensitivity_is_the_largest_move_over_all_patterns(
    rounds: int, band: int, separation: int, most: int
) -> None:
    """Brute force over patterns, and over contributions of either direction in each round."""
    participation = Participation(rounds=rounds, separation=separation, most=most)
    for seed in range(5):
        matrix = uneven(rounds, band, seed)
        c = matrix.dense()
        largest = 0.0
        for chosen in patterns(participation):
            columns = c[:, [t - 1 for t in chosen]]
            # The largest |C u| over |u_j| <= 1 in any dimension: the Gram matrix must be diagonal for the claim.
            gram = columns.T @ columns
            assert np.array_equal(gram, np.diag(np.diag(gram)))
            for signs in ([1] * len(chosen), [(-1) ** i for i in range(len(chosen))]):
                largest = max(largest, float(np.linalg.norm(columns @ np.array(signs, dtype=float))))
        found = sensitivity(matrix, participation)
        assert found == pytest.approx(largest, rel=1e-12)
        assert Fraction(found) ** 2 >= Fraction(squared_sensitivity(matrix, participation), 4**DIGITS)


def test_with_participations_closer_than_the_band_there_is_no_such_sensitivity() -> None:
    with pytest.raises(ValueError, match="3 bands needs as many rounds"):
        sensitivity(uneven(9, 3), Participation(rounds=9, separation=2, most=2))
    with pytest.raises(ValueError, match="9 rounds is none of 8"):
        sensitivity(uneven(9, 3), Participation(rounds=8, separation=3, most=2))


def test_unit_columns_make_it_the_root_of_the_participations() -> None:
    for band, most in ((10, 10), (20, 5), (50, 2)):
        matrix = square_root(Workload(rounds=100), band)
        found = sensitivity(matrix, Participation(rounds=100, separation=band, most=most))
        assert found == pytest.approx(math.sqrt(most), rel=2e-3)


def test_c_has_an_inverse() -> None:
    c = square_root(Workload(rounds=50, momentum=0.9), 12).dense()
    assert c @ np.linalg.inv(c) == pytest.approx(np.eye(50), abs=1e-12)
    assert np.array_equal(c, np.tril(c))
    assert not np.any(np.tril(c, -12))


def test_rows_and_columns_are_of_one_matrix() -> None:
    matrix = uneven(7, 3)
    for t in range(7):
        row = matrix.row(t)
        assert [Fraction(entry, 2**DIGITS) for entry in row] == [
            Fraction(float(matrix.dense()[t, t - i])) for i in range(len(row))
        ]


@pytest.mark.parametrize(("apart", "gain"), [(10, 2.342), (20, 2.757), (25, 2.862), (50, 3.072)])
def test_of_100_rounds_with_participations_10_to_50_apart_errors_are_2_to_3_times_smaller(
    apart: int, gain: float
) -> None:
    workload, participation = Workload(rounds=100), Participation(rounds=100, separation=apart, most=100)
    ratio = independent_error(participation, workload) / rms_error(
        square_root(workload, apart), participation, workload
    )
    assert ratio == pytest.approx(gain, abs=2e-3)


def test_with_momentum_it_gains_more() -> None:
    workload, participation = Workload(rounds=100, momentum=0.9), Participation(rounds=100, separation=20, most=5)
    ratio = independent_error(participation, workload) / rms_error(square_root(workload, 20), participation, workload)
    assert ratio == pytest.approx(3.793, abs=2e-3)


def test_nothing_is_gained_if_every_client_joins_every_round() -> None:
    workload, participation = Workload(rounds=100), Participation(rounds=100, separation=1, most=100)
    ratio = independent_error(participation, workload) / rms_error(square_root(workload, 1), participation, workload)
    assert ratio == pytest.approx(1.0, rel=1e-12)
    assert ratio <= 1


def test_the_error_is_that_of_the_whole_product() -> None:
    """Against the definition: |A C^-1|, entry by entry."""
    workload, participation = Workload(rounds=12), Participation(rounds=12, separation=4, most=3)
    matrix = square_root(workload, 4)
    product = workload.matrix() @ np.linalg.inv(matrix.dense())
    expected = sensitivity(matrix, participation) * math.sqrt(np.mean(np.sum(product**2, axis=1)))
    assert rms_error(matrix, participation, workload) == pytest.approx(expected, rel=1e-12)


def test_the_square_root_is_the_same_on_every_machine() -> None:
    """It is computed in whole numbers alone: so it has one digest."""
    digests = {square_root(Workload(rounds=30, momentum=m), 7).digest for m in (0.0, 0.9)}
    assert digests == {
        "a2d32afd46b6eaedb92bb40129fbef36fdb463dfbcb5a4a3c7ed7d0b8a33970a",
        "c36010690cada818b765dfc086f4aac4418195db1cfddec5c951ca8498740e51",
    }


def test_a_digest_names_one_matrix() -> None:
    matrix = uneven(6, 2)
    assert matrix.digest == BandedMatrix(columns=matrix.columns.copy()).digest
    others = [uneven(6, 2, 1), uneven(6, 3), uneven(7, 2)]
    assert len({matrix.digest, *(other.digest for other in others)}) == 4


def test_a_matrix_cannot_change() -> None:
    columns = np.full((1, 1), 5)
    matrix = BandedMatrix(columns=columns)
    columns[0, 0] = 9
    assert matrix.columns[0, 0] == 5
    with pytest.raises(ValueError, match="read-only"):
        matrix.columns[0, 0] = 9


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (np.ones((3, 2)), "whole numbers"),
        (np.ones(3, dtype=np.int64), "whole numbers"),
        (np.ones((2, 3), dtype=np.int64), "1 to 2 bands"),
        (np.ones((2, 0), dtype=np.int64), "1 to 2 bands"),
        (np.ones((3, 2), dtype=np.int64), "below its last row"),
        (np.zeros((3, 1), dtype=np.int64), "on its diagonal"),
        (np.full((3, 1), 1 << 40), "on its diagonal"),
    ],
)
def test_what_is_no_banded_matrix_is_refused(columns: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BandedMatrix(columns=columns)


@pytest.mark.parametrize("band", [0, 4])
def test_a_band_is_one_of_the_rounds(band: int) -> None:
    with pytest.raises(ValueError, match=f"got {band}"):
        square_root(Workload(rounds=3), band)
