"""A better C: by a right gradient, and never worse than where it starts."""

import numpy as np
import pytest

from privacy.factorisation import Participation, Workload, independent_error, optimised, rms_error, square_root
from privacy.factorisation.optimise import error_and_gradient


def test_the_gradient_is_that_of_the_error() -> None:
    a = Workload(rounds=6, momentum=0.5).matrix()
    raw = np.random.default_rng(3).random((6, 3)) + 0.2
    raw[np.add.outer(np.arange(6), np.arange(3)) >= 6] = 0
    gradient = error_and_gradient(raw, a)[1]
    for at in np.argwhere(raw):
        move = np.zeros_like(raw)
        move[tuple(at)] = 1e-6
        slope = (error_and_gradient(raw + move, a)[0] - error_and_gradient(raw - move, a)[0]) / 2e-6
        assert gradient[tuple(at)] == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_the_error_counts_columns_as_if_they_were_of_length_1() -> None:
    a, raw = Workload(rounds=2).matrix(), np.array([[3.0, 4.0], [7.0, 0.0]])
    c = np.array([[0.6, 0.0], [0.8, 1.0]])
    assert error_and_gradient(raw, a)[0] == pytest.approx(np.sum((a @ np.linalg.inv(c)) ** 2))


@pytest.mark.parametrize(("apart", "gain"), [(10, 2.448), (50, 3.122)])
def test_it_gains_a_few_percent_on_the_square_root(apart: int, gain: float) -> None:
    workload, participation = Workload(rounds=100), Participation(rounds=100, separation=apart, most=100)
    ratio = independent_error(participation, workload) / rms_error(optimised(workload, apart), participation, workload)
    assert ratio == pytest.approx(gain, abs=5e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("rounds", "band"), [(1, 1), (2, 2), (9, 1), (20, 5), (20, 20)])
def test_it_is_no_worse_than_the_square_root(rounds: int, band: int, momentum: float) -> None:
    workload = Workload(rounds=rounds, momentum=momentum)
    participation = Participation(rounds=rounds, separation=band, most=rounds)
    best = rms_error(optimised(workload, band), participation, workload)
    assert best <= rms_error(square_root(workload, band), participation, workload) * 1.002  # entries are rounded


def test_too_many_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2000 rounds at most, got 2001"):
        optimised(Workload(rounds=2001), 2)
