"""The grid of joint steps: what one record moves, the noise that is made for it, and the ring (rules 1, 2 and 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.example_sum_grid import SLACK, ExampleSumGrid
from privacy.mechanisms import LEAST_ROUNDED_SHARE, RoundedGaussianSum
from privacy.noise import NoiseSource, ReproducibleNoise
from privacy.secure_encoding import encode_gradients
from privacy.table_distance import cut_off_normal_largest

Vector = npt.NDArray[np.float64]

FACTS = {
    "clipping_norm": 1.0,
    "noise_multiplier": 1.0,
    "honest": 5,
    "dimension": 650,
    "batch_size": 144.0,
    "clients": 10,
}

CASES = [
    {},
    {"honest": 1, "noise_multiplier": 0.1},
    {"dimension": 10},
    {"dimension": 60_180, "batch_size": 600.0, "clients": 100, "honest": 80, "noise_multiplier": 13.3},
    {"dimension": 10**6, "batch_size": 6000.0, "clients": 200, "honest": 100},
    {"dimension": 10**7, "noise_multiplier": 20.0},
    {"batch_size": 0.5},
]


def grid_of(**changes: float) -> ExampleSumGrid:
    return ExampleSumGrid.of(**{**FACTS, **changes})  # type: ignore[arg-type]


class Silent(ReproducibleNoise):
    """No noise: what is beneath it."""

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


def whole(total: Vector, grid: ExampleSumGrid) -> npt.NDArray[np.int64]:
    """What goes into the sum beneath the noise."""
    return encode_gradients(total, grid, bits=64, noise=Silent(b"none")).view(np.int64)


def length(vector: npt.NDArray[np.int64]) -> float:
    return math.sqrt(sum(int(value) ** 2 for value in vector))  # exact but for the root


# --- what one record moves -----------------------------------------------------------------------------------------


def neighbours(kind: str, dimension: int, clip: float, most: float) -> tuple[Vector, Vector]:
    """Two sums that one record, C (1 + SLACK) long, tells apart: chosen so that rounding or clamping matters most."""
    step, unit = clip / 2**20, np.full(dimension, 1 / math.sqrt(dimension))
    generator = np.random.default_rng(len(kind))
    base, move = {
        "all in one coordinate": (np.zeros(dimension), np.eye(1, dimension, 3)[0]),
        "spread evenly": (np.zeros(dimension), unit),
        "across the ties": (np.full(dimension, step * (0.5 - 1e-7)), unit),
        "onto the ties": (np.full(dimension, step * 0.5) - clip * unit, unit),
        "away from even numbers": (np.full(dimension, step * 1.5), -unit),
        "ordinary": (generator.standard_normal(dimension) * 3, None),
        "into the clamp": (np.full(dimension, most) - clip * unit / 2, unit),
        "beyond the clamp": (np.full(dimension, 2 * most), unit),
        "from clamp to clamp": (np.where(np.arange(dimension) % 2, most, -most), -unit),
    }[kind]
    if move is None:
        move = generator.standard_normal(dimension)
        move /= np.linalg.norm(move)
    return base, base + clip * (1 + SLACK) * (1 - 1e-12) * move


@pytest.mark.parametrize("dimension", [5, 650, 20_000])
@pytest.mark.parametrize(
    "kind",
    [
        "all in one coordinate",
        "spread evenly",
        "across the ties",
        "onto the ties",
        "away from even numbers",
        "ordinary",
        "into the clamp",
        "beyond the clamp",
        "from clamp to clamp",
    ],
)
def test_rule_9_one_record_moves_the_sum_by_no_more_than_the_noise_is_made_for(kind: str, dimension: int) -> None:
    """Rounding is no chance here: this is every outcome there is."""
    grid = grid_of(dimension=dimension)
    without, with_it = neighbours(kind, dimension, grid.clipping_norm, grid.most * grid.step)
    assert length(whole(with_it, grid) - whole(without, grid)) <= grid.sensitivity()


@settings(max_examples=150, deadline=None)
@given(
    dimension=st.integers(1, 40),
    steps=st.integers(1, 8),
    batch=st.sampled_from([0.25, 1.0, 7.5]),
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([0.0, 0.01, 1.0, 50.0]),
)
def test_rule_9_so_it_is_on_the_coarsest_grids(
    dimension: int, steps: int, batch: float, seed: int, scale: float
) -> None:
    """Where a step is as large as a gradient, rounding and clamping are all that there is."""
    grid = replace(grid_of(dimension=dimension), steps=1 << steps, most=math.ceil(batch * 2**steps))
    generator = np.random.default_rng(seed)
    base = generator.standard_normal(dimension) * scale
    move = generator.standard_normal(dimension)
    move *= generator.random() / np.linalg.norm(move)
    moved = length(whole(base + move, grid) - whole(base, grid))
    assert moved <= grid.sensitivity()
    # In one coordinate rounding adds less than a step.
    assert moved <= math.sqrt(dimension) + np.linalg.norm(move) / grid.step + 1e-9


def test_the_roundings_part_of_the_sensitivity_is_needed() -> None:
    """Coordinates that all cross a tie by next to nothing: one step each, sqrt(d) in all."""
    grid = replace(grid_of(dimension=400), steps=2, most=100)
    below = np.full(400, grid.step * (1.5 - 1e-9))
    assert length(whole(below + grid.step * 2e-9, grid) - whole(below, grid)) == 20.0
    assert grid.sensitivity() == 2 * (1 + SLACK) + 20.0


@pytest.mark.parametrize("records", [1, 2, 7])
def test_rule_6_a_persons_records_move_it_by_as_many_clipping_norms(records: int) -> None:
    grid = grid_of()
    assert grid.sensitivity(records) == records * grid.steps * (1 + SLACK) + math.sqrt(650)
    unit = np.full(650, 1 / math.sqrt(650))
    base = np.full(650, grid.step * (0.5 - 1e-7))
    moved = length(whole(base + records * (1 + SLACK) * unit, grid) - whole(base, grid))
    assert grid.sensitivity(records) - 2 * math.sqrt(650) <= moved <= grid.sensitivity(records)


# --- the noise -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", CASES)
def test_rule_2_the_honest_together_have_the_multiplier_that_was_asked_for(changes: dict[str, float]) -> None:
    """Over what one record moves, rounding and slack included; of the clipping norm alone it is a little more."""
    asked = {**FACTS, **changes}
    grid = grid_of(**changes)
    together = grid.noise_share * math.sqrt(asked["honest"])
    assert together / grid.sensitivity() == pytest.approx(asked["noise_multiplier"], rel=1e-12)
    release = RoundedGaussianSum(
        noise_share=grid.noise_share,
        honest=int(asked["honest"]),
        l2_sensitivity=grid.sensitivity(),
        dimension=grid.dimension,
    )
    assert release.noise_multiplier == pytest.approx(asked["noise_multiplier"], rel=1e-12)
    # What rounding costs beyond DP-SGD with one trusted server: a hundredth and the slack, at most.
    assert together * grid.step <= asked["noise_multiplier"] * asked["clipping_norm"] * (1.01 + 2 * SLACK)
    assert grid.noise_share >= LEAST_ROUNDED_SHARE


def test_the_noise_of_a_share_is_as_large_as_it_says_and_bounded() -> None:
    grid = grid_of()
    assert grid.noise == "rounded-gaussian"
    assert grid.largest == cut_off_normal_largest(grid.noise_share) == math.ceil(13.5 * grid.noise_share)
    assert grid.bound == grid.most + grid.largest


# --- the ring ------------------------------------------------------------------------------------------------------


class Farthest(ReproducibleNoise):
    """Noise beyond everything, one way: it is cut off."""

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.full(tuple(shape), 2**60, dtype=torch.int64)


@pytest.mark.parametrize("changes", CASES)
def test_rule_9_no_sum_wraps_whatever_clients_hold_and_draw(changes: dict[str, float]) -> None:
    asked = {**FACTS, **changes}
    grid, clients = grid_of(**changes), int(asked["clients"])
    bits = grid.bits(clients)
    assert clients * grid.bound < 1 << (bits - 1)
    small = replace(grid, dimension=3)
    for sign in (1, -1):
        noise: NoiseSource = Farthest(b"far")
        one = encode_gradients(np.full(3, sign * 1e200), small, bits=bits, noise=noise)
        total = np.zeros_like(one)
        for _ in range(clients):
            total += one
        lifted = total.view(np.int32 if bits == 32 else np.int64).astype(object)
        assert lifted.tolist() == [clients * (sign * grid.most + grid.largest)] * 3


@pytest.mark.parametrize("changes", CASES)
def test_it_is_the_finest_grid_that_fits_and_rounding_costs_little(changes: dict[str, float]) -> None:
    asked = {**FACTS, **changes}
    grid, clients = grid_of(**changes), int(asked["clients"])
    assert math.log2(grid.steps) % 1 == 0
    assert grid.step * grid.steps == asked["clipping_norm"]
    assert grid.most == math.ceil(asked["batch_size"] * grid.steps)
    assert math.sqrt(grid.dimension) <= 0.01 * grid.steps
    finest = {32: 2**20, 64: 2**30}[grid.width]
    finer = grid.noise_share * 2
    wraps = clients * (2 * grid.most + cut_off_normal_largest(finer)) >= 1 << (grid.width - 1)
    assert grid.steps == finest or wraps or finer > 2**34


def test_a_wide_ring_is_taken_only_where_a_narrow_one_rounds_too_coarsely() -> None:
    assert grid_of().width == 32
    many = grid_of(dimension=10**6, batch_size=6000.0, clients=200, honest=100)
    assert many.width == 64
    # The finest grid whose sums fit 32 bits has fewer steps than a hundred roots of the dimension.
    assert many.bits(3) == 64


def test_a_smaller_cohort_uses_the_ring_of_the_plan() -> None:
    grid = grid_of()
    assert grid.bits(1) == grid.bits(10) == 32
    fits = (2**31 - 1) // grid.bound
    assert fits >= 10
    assert [grid.bits(fits), grid.bits(fits + 1)] == [32, 64]


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": 1e12},  # no sampler draws that much
        {"dimension": 10**17},  # nor is any grid fine enough
        {"batch_size": 1e13, "clients": 10**6},  # nor wide enough
        {"noise_multiplier": 1e-9},  # nor has so little noise a proof
    ],
)
def test_where_there_is_no_grid_it_says_so(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="out of range: the grid would be too coarse for the clipping norm"):
        grid_of(**changes)


@pytest.mark.parametrize("wrong", sorted(FACTS))
def test_values_out_of_range_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="all above 0"):
        grid_of(**{wrong: 0})
