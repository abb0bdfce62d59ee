"""Rule 9: rounding enters the sensitivity. Here it is paid for by clipping a little shorter, so that C stays C."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.noise_limits import LARGEST_SCALE
from privacy.release_grid import ReleaseGrid


@given(
    clip=st.floats(1e-9, 1e9),
    sigma=st.floats(1e-4, 2**14),
    dimensions=st.integers(1, 10_000_000),
)
def test_the_noise_is_that_of_the_plan_to_the_last_digit(clip: float, sigma: float, dimensions: int) -> None:
    grid = ReleaseGrid.of(clipping_norm=clip, noise_multiplier=sigma, dimensions=dimensions)
    assert grid.steps == 2**20
    assert grid.noise_scale / grid.steps == sigma
    assert grid.step * grid.steps == clip
    assert grid.norm + math.sqrt(dimensions) / 2 <= grid.steps
    assert grid.norm >= 0.998 * grid.steps


@given(dimensions=st.integers(1, 300), seed=st.integers(0, 2**32), corner=st.booleans())
def test_rounding_makes_no_vector_longer_than_the_clipping_norm(dimensions: int, seed: int, corner: bool) -> None:
    sigma = 2.0**23  # so much noise that the grid is coarse: 2^11 steps
    grid = ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=sigma, dimensions=dimensions)
    x = np.random.default_rng(seed).standard_normal(dimensions)
    if corner:  # every coordinate rounds outwards by nearly half a step
        x = np.floor(x * grid.norm / np.linalg.norm(x)) + 0.5
    x *= grid.norm / np.linalg.norm(x)
    assert math.sqrt(sum(int(k) ** 2 for k in np.rint(x))) <= grid.steps


@pytest.mark.parametrize(("sigma", "digits"), [(1.0, 20), (2.0**14, 20), (2.0**14 * 1.01, 19), (2.0**20, 14)])
def test_more_noise_than_can_be_drawn_finely_makes_a_coarser_grid(sigma: float, digits: int) -> None:
    grid = ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=sigma, dimensions=1000)
    assert grid.steps == 2**digits
    assert grid.noise_scale <= LARGEST_SCALE


@pytest.mark.parametrize(("sigma", "dimensions"), [(1.0, 10**9), (2.0**20, 200_000), (2.0**40, 1), (1e300, 1)])
def test_a_grid_too_coarse_for_the_clipping_norm_is_refused(sigma: float, dimensions: int) -> None:
    with pytest.raises(ValueError, match=rf"with {dimensions} parameters is out of range"):
        ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=sigma, dimensions=dimensions)
