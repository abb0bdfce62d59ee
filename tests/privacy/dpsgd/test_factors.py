"""Factors of gradients: norms and clipped sums are those of the gradients; one example moves a sum by C at most."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from privacy.dpsgd.clipping import clipped_sums
from privacy.dpsgd.factors import MOST_EXAMPLES, Factors
from privacy.example_sum_grid import SLACK
from privacy.release_grid import ReleaseGrid

C = 0.75

shapes = st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9))


def factors_of(seed: int, shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32) -> Factors:
    n, places, out, features = shape
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(n, places, out, generator=generator, dtype=dtype),
        torch.randn(n, places, features, generator=generator, dtype=dtype),
    )


def grid_for(dimensions: int) -> ReleaseGrid:
    return ReleaseGrid.of(clipping_norm=C, noise_multiplier=1.0, dimensions=dimensions)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=shapes)
def test_norms_are_never_too_small_and_hardly_too_large(seed: int, shape: tuple[int, int, int, int]) -> None:
    factors = factors_of(seed, shape)
    exact = torch.einsum("nto,nti->noi", factors.slopes.double(), factors.inputs.double()).flatten(1).norm(dim=1)
    uncancelled = (factors.slopes.double().norm(dim=2) * factors.inputs.double().norm(dim=2)).sum(1)
    found = factors.squared_norms().sqrt()
    assert (found >= exact * (1 - 1e-14)).all()
    assert (found <= exact + 2.0**-10 * uncancelled).all()


def test_a_gradient_that_cancels_is_not_taken_for_zero() -> None:
    slopes = torch.tensor([[[1.0], [-1.0]]])
    inputs = torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]) * 1e3
    norm = Factors(slopes, inputs).squared_norms().sqrt()
    assert 0 < float(norm) == pytest.approx(2 * math.sqrt(5) * 1e3 / 2**10)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=shapes)
def test_clipped_sums_equal_those_of_the_gradients(seed: int, shape: tuple[int, int, int, int]) -> None:
    factors = factors_of(seed, shape, torch.float64)
    beside = torch.randn(shape[0], 5, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    grid = grid_for(factors.numel + 5)
    together, alone = clipped_sums([factors, beside], grid), clipped_sums([factors.rows().flatten(1), beside], grid)
    assert together[0].dtype == torch.float64
    assert alone[0].dtype == together[1].dtype == torch.int64
    # Rows are rounded each, by half a step; and B^2 / 2^20 makes clipping a little shorter.
    for some, other in zip(together, alone, strict=True):
        assert (some - other).abs().max() <= shape[0] * (0.5 + 1e-4 * grid.steps)
    exact_rows = factors.rows().flatten(1)
    norms = torch.cat([exact_rows, beside], 1).norm(dim=1)
    expected = ((C / norms).clamp(max=1)[:, None] * exact_rows).sum(0)
    assert (together[0] * grid.step - expected).norm() <= 2e-4 * expected.norm() + 1e-6 * shape[0]


EXTREMES = {
    "huge": lambda t: t * 1e17,
    "tiny": lambda t: t * 1e-30,
    "denormal": lambda t: t * 1e-42,
    "zero": lambda t: t * 0,
    "ordinary": lambda t: t,
    "not finite": lambda t: t * math.inf,
}


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("which", EXTREMES)
@pytest.mark.parametrize("others", EXTREMES)
def test_rule_9_one_example_moves_the_sum_by_the_clipping_norm_at_most(which: str, others: str, places: int) -> None:
    generator = torch.Generator().manual_seed(7)

    def draw(n: int, values: int) -> Tensor:
        return torch.randn(n, places, values, generator=generator)

    slopes, inputs = EXTREMES[others](draw(65, 12)), draw(65, 20)
    slopes[-1:] = EXTREMES[which](draw(1, 12))
    grid = grid_for(240)
    with_it = clipped_sums([Factors(slopes, inputs)], grid)[0]
    without = clipped_sums([Factors(slopes[:-1], inputs[:-1])], grid)[0]
    assert with_it.isfinite().all()
    moved = (with_it - without).norm()
    assert moved <= grid.steps * (1 + SLACK)
    if which in ("huge", "ordinary"):
        assert moved > 0.99 * grid.steps
    if which == "not finite":
        assert moved == 0


def test_the_slack_covers_what_arithmetic_may_do() -> None:
    n, u = MOST_EXAMPLES, 2.0**-53
    assert 2 * (2051 * 2**10 * n * u + n**2 * u) <= SLACK
