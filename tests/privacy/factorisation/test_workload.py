"""What is made of updates: prefix sums, with or without momentum."""

import math

import numpy as np
import pytest

from privacy.factorisation.workload import Workload, unit_column


def test_a_model_is_the_sum_of_its_updates() -> None:
    x = np.array([3.0, -1.0, 2.0])
    assert (Workload(rounds=3).matrix() @ x).tolist() == [3.0, 2.0, 4.0]


def test_with_momentum_it_is_the_sum_of_velocities() -> None:
    x = np.random.default_rng(1).standard_normal(9)
    model, velocity, models = 0.0, 0.0, []
    for update in x:
        velocity = 0.9 * velocity + update
        model += velocity
        models.append(model)
    assert Workload(rounds=9, momentum=0.9).matrix() @ x == pytest.approx(models)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.999])
def test_the_root_is_a_square_root(momentum: float) -> None:
    n = 40
    root = np.array([float(term) * 2.0**-192 for term in Workload(rounds=n, momentum=momentum).root(n)])
    matrix = np.array([[root[t - j] if t >= j else 0.0 for j in range(n)] for t in range(n)])
    assert matrix @ matrix == pytest.approx(Workload(rounds=n, momentum=momentum).matrix(), rel=1e-12)


def test_its_first_terms_are_known() -> None:
    assert [term / 2**192 for term in Workload(rounds=4).root(4)] == [1.0, 0.5, 0.375, 0.3125]


def test_a_column_of_whole_numbers_has_length_2_to_the_digits() -> None:
    whole = unit_column(Workload(rounds=60).root(60), 10)
    assert math.hypot(*whole) == pytest.approx(1024, abs=math.sqrt(60) / 2)
    assert unit_column([7], 10) == [1024]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"momentum": 1.0}, {"momentum": -0.1}, {"momentum": math.nan}])
def test_what_is_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Workload(**{"rounds": 3, **wrong})  # type: ignore[arg-type]
