"""The grid of a secure sum: the noise it carries, what rounding leaves, and the ring (rules 2 and 9)."""

import math

import numpy as np
import pytest

from privacy.sum_grid import LARGEST_NOISE, LARGEST_SHARES, SumGrid, SumNoise, padded_size


def grid_of(dimension: int, noise_multiplier: float = 1.0, honest: int = 5, **keys: object) -> SumGrid:
    facts = {"clipping_norm": 1.0, "noise_multiplier": noise_multiplier, "honest": honest, "dimension": dimension}
    return SumGrid.of(**{**facts, **keys})  # type: ignore[arg-type]


TABLES: tuple[SumNoise, ...] = ("discrete-gaussian", "skellam")
NOISES: tuple[SumNoise, ...] = ("rounded-gaussian", *TABLES)

CASES = [(1, 1.0, 5), (26_000, 1.0, 5), (26_000, 0.05, 2), (10**6, 1.0, 5), (10**6, 5.0, 25), (10**7, 0.5, 100)]


@pytest.mark.parametrize(("dimension", "noise", "honest"), CASES)
@pytest.mark.parametrize("clip", [1e-9, 0.3, 1.0, 1e9])
def test_the_honest_together_have_the_noise_that_was_asked_for(
    dimension: int, noise: float, honest: int, clip: float
) -> None:
    grid = grid_of(dimension, noise, honest, clipping_norm=clip)
    assert grid.step * grid.steps == clip
    assert math.log2(grid.steps) % 1 == 0
    assert grid.noise_share * math.sqrt(honest) * grid.step / clip == pytest.approx(noise, rel=1e-12)


@pytest.mark.parametrize(("dimension", "noise", "honest"), CASES)
def test_the_grid_is_fine_enough_to_be_forgotten_and_no_finer(dimension: int, noise: float, honest: int) -> None:
    grid = grid_of(dimension, noise, honest)
    assert 2**10 <= grid.noise_share <= LARGEST_SHARES[grid.noise]
    assert 0.99 * grid.steps <= grid.norm < grid.steps
    # Rounding adds a quarter of a step's square at most to each client's variance.
    assert 0.25 / grid.noise_share**2 < 1e-6
    coarser = grid_of(dimension, noise * 4, honest)
    assert coarser.steps <= grid.steps


@pytest.mark.parametrize(("dimension", "noise", "honest"), CASES)
def test_the_norm_that_goes_in_keeps_what_comes_out_below_the_clipping_norm(
    dimension: int, noise: float, honest: int
) -> None:
    """Kairouz, Liu & Steinke 2021, algorithm 1, with beta = 2^-40; or the bound that holds for all roundings."""
    grid = grid_of(dimension, noise, honest)
    c, root = grid.norm, math.sqrt(dimension)
    mostly = math.sqrt(c**2 + dimension / 4 + math.sqrt(2 * math.log(2**40)) * (c + root / 2))
    assert min(mostly, c + root) <= grid.steps
    assert min(mostly, c + root) == pytest.approx(grid.steps, rel=1e-9)


@pytest.mark.parametrize("noise", TABLES)
def test_much_noise_in_many_dimensions_makes_the_grid_coarser_then_impossible(noise: SumNoise) -> None:
    grid = grid_of(10**6, 40.0, noise=noise)
    assert grid.noise_share <= LARGEST_SHARES[noise]
    assert 0.5 * grid.steps <= grid.norm < 0.99 * grid.steps
    with pytest.raises(ValueError, match="out of range: the grid would be too coarse for the clipping norm"):
        grid_of(10**6, 1000.0, noise=noise)
    with pytest.raises(ValueError, match="out of range"):
        grid_of(1, 2.0**20, honest=1, noise=noise)


def test_noise_without_a_table_may_be_large() -> None:
    """Rounded Gaussians are drawn at any scale up to 2^34 steps: where a table ends, the grid stays fine."""
    grid = grid_of(10**6, 1000.0)
    assert grid.noise == "rounded-gaussian"
    assert 2**16 < grid.noise_share <= 2**34
    assert grid.norm >= 0.99 * grid.steps
    with pytest.raises(ValueError, match="out of range"):
        grid_of(10**6, 2.0**33)


@pytest.mark.parametrize("noise", NOISES)
def test_no_sum_wraps_in_its_ring(noise: SumNoise) -> None:
    grid = grid_of(1000, noise=noise)
    assert grid.largest == LARGEST_NOISE[noise](grid.noise_share)
    assert grid.bound == grid.steps + grid.largest
    fits = (2**31 - 1) // grid.bound
    assert [grid.bits(clients) for clients in (1, fits, fits + 1, 10**6)] == [32, 32, 64, 64]
    assert fits * grid.bound <= np.iinfo(np.int32).max
    with pytest.raises(ValueError, match="fits no ring"):
        grid.bits(2**62)


@pytest.mark.parametrize("wrong", ["clipping_norm", "noise_multiplier", "honest", "dimension"])
def test_values_out_of_range_are_refused(wrong: str) -> None:
    facts = {"clipping_norm": 1.0, "noise_multiplier": 1.0, "honest": 5, "dimension": 10}
    with pytest.raises(ValueError, match="all above 0"):
        SumGrid.of(**{**facts, wrong: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "padded"), [(1, 1), (2, 2), (3, 4), (160, 256), (1024, 1024), (1025, 2048)])
def test_padding(size: int, padded: int) -> None:
    assert padded_size(size) == padded
