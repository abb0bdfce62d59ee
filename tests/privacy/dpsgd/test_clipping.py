"""Rules 5 and 9 before the noise: whole numbers, no longer than the clipping norm, each example for itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from privacy.dpsgd import clipping
from privacy.dpsgd.clipping import clipped_sums
from privacy.release_grid import ReleaseGrid


def grid(dimensions: int, clipping_norm: float = 1.0) -> ReleaseGrid:
    return ReleaseGrid.of(clipping_norm=clipping_norm, noise_multiplier=1.0, dimensions=dimensions)


def clipped_sum(gradients: Tensor, clipping_norm: float = 1.0) -> Tensor:
    """Of gradients (examples, parameters), in steps."""
    (summed,) = clipped_sums([gradients], grid(gradients.shape[1], clipping_norm))
    return summed


def length(steps: Tensor) -> float:
    """Exact up to the root: Python's whole numbers have no end."""
    return math.sqrt(sum(k * k for k in steps.flatten().tolist()))


# Every kind of float: huge, tiny, denormal, zero, infinite, not a number.
def floats(width: int) -> st.SearchStrategy[float]:
    return st.floats(width=width, allow_nan=True, allow_infinity=True) | st.sampled_from(
        [0.0, 1e-45, -1e-40, 1e-19, 1.0, -1.0, 1e19, 2e19, 3.4e38, math.inf, -math.inf, math.nan]
    ).map(np.dtype(f"float{width}").type).map(float)


def batches(width: int) -> st.SearchStrategy[np.ndarray]:
    shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
    return shapes.flatmap(lambda shape: arrays.arrays(f"float{width}", shape, elements=floats(width)))


norms = st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0, 1e9])


@settings(max_examples=400, deadline=None)
@given(batch=batches(32) | batches(64), clip=norms, which=st.integers(0, 5))
@example(batch=np.full((2, 6), 1e19, dtype="float32"), clip=1e-9, which=0)
@example(batch=np.full((2, 6), 3.4e38, dtype="float32"), clip=1.0, which=1)
def test_one_example_moves_the_sum_by_its_own_rounded_gradient_and_at_most_the_clipping_norm(
    batch: np.ndarray, clip: float, which: int
) -> None:
    gradients = torch.as_tensor(batch)
    which %= len(gradients)
    alone = clipped_sum(gradients[which : which + 1], clip)
    others = clipped_sum(torch.cat([gradients[:which], gradients[which + 1 :]]), clip)
    assert torch.equal(clipped_sum(gradients, clip), others + alone)  # to the last step: nobody else's changes
    assert length(alone) <= grid(gradients.shape[1], clip).steps


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 70),
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    threads=st.integers(1, 2),
    seed=st.integers(0, 2**32),
)
@example(n=70, sizes=[40_000, 3], threads=2, seed=0)  # more columns, rows and values than are summed at a time
def test_the_same_holds_for_real_sizes(n: int, sizes: list[int], threads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (4 * torch.rand(n, 1, generator=generator) - 3)
    gradients = [torch.randn(n, size, generator=generator) * scales for size in sizes]
    its_grid = grid(sum(sizes))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = torch.cat(clipped_sums(gradients, its_grid))
        alone = [torch.cat(clipped_sums([part[i : i + 1] for part in gradients], its_grid)) for i in range(n)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole, torch.stack(alone).sum(0))
    assert max(length(one) for one in alone) <= its_grid.steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 127, 128, 129, 1000, 100_003])
def test_a_vector_that_rounds_outwards_everywhere_is_no_longer_than_the_clipping_norm(
    size: int, dtype: torch.dtype
) -> None:
    its_grid = grid(size)
    at = its_grid.norm / math.sqrt(size)
    outwards = (math.floor(at - 0.5) + 0.5000001) * its_grid.step  # the clipped coordinate, just above a half step
    for value in (outwards, 7 * outwards, math.nextafter(outwards, 2), 1e15):
        assert length(clipped_sum(torch.full((1, size), value, dtype=dtype))) <= its_grid.steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_clipped_sum_but_for_half_a_step_each(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(50, size, generator=generator, dtype=dtype) * 0.057 for size in (300, 7)]
    its_grid = grid(307)
    together = torch.cat(gradients, dim=1).double()
    limit = its_grid.norm * its_grid.step
    clipped = together * (limit / together.norm(dim=1, keepdim=True)).clamp(max=1)
    found = torch.cat(clipped_sums(gradients, its_grid)) * its_grid.step
    assert 0 < (together.norm(dim=1) > 1).sum() < 50
    tolerance = 50 * (0.5 * its_grid.step + 1e-5 * float(clipped.abs().max()))
    assert (found - clipped.sum(0)).abs().max() <= tolerance
    # Nor does rounding lean to one side: errors average out.
    assert (found - clipped.sum(0)).mean().abs() <= tolerance / 50


def test_quick_and_careful_sums_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = torch.randn(100, 40_000, generator=torch.Generator().manual_seed(3))
    careful = clipped_sum(gradients)
    monkeypatch.setattr(clipping, "_SMALL", 1 << 30)
    assert torch.equal(clipped_sum(gradients), careful)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_sums_are_exact(dtype: torch.dtype) -> None:
    one = clipped_sum(torch.full((1, 1), 5.0, dtype=dtype)).item()
    assert grid(1).steps - 6 <= one <= grid(1).steps
    assert clipped_sum(torch.full((100_000, 1), 5.0, dtype=dtype)).item() == 100_000 * one


@settings(max_examples=100, deadline=None)
@given(batch=batches(32), bad=st.sampled_from([math.nan, math.inf, -math.inf]), where=st.integers(0, 35))
def test_rule_5_a_gradient_that_is_not_finite_adds_exactly_zero(batch: np.ndarray, bad: float, where: int) -> None:
    gradients = torch.as_tensor(batch)
    row = torch.zeros(1, gradients.shape[1])
    row[0, where % gradients.shape[1]] = bad
    assert torch.equal(clipped_sum(torch.cat([row, gradients])), clipped_sum(gradients))
    assert not clipped_sum(row).any()


@pytest.mark.parametrize("value", [2e19, 1e30, 3.4e38])
def test_rule_5_a_norm_whose_square_is_out_of_range_counts_as_not_finite(value: float) -> None:
    assert not clipped_sum(torch.tensor([[value]])).any()


def test_rule_5_one_bad_parameter_silences_the_whole_example() -> None:
    weight, bias = torch.tensor([[0.1, 0.1], [0.2, 0.2]]), torch.tensor([[math.nan], [0.2]])
    found = clipped_sums([weight, bias], grid(3))
    assert torch.equal(found[0], torch.round(torch.tensor([0.2, 0.2]) * 2**20).long())
    assert found[1].item() == round(0.2 * 2**20)


def test_gradients_below_the_clipping_norm_are_only_rounded() -> None:
    exact = torch.tensor([[0.5, -0.25], [1e-30, 1e-45], [3.4 * 2.0**-20, -0.6 * 2.0**-20]])
    assert clipped_sum(exact[:1]).tolist() == [2**19, -(2**18)]
    assert clipped_sum(exact[1:2]).tolist() == [0, 0]
    assert clipped_sum(exact[2:]).tolist() == [3, -1]


def test_no_examples_no_sum() -> None:
    assert clipped_sum(torch.zeros(0, 5)).tolist() == [0] * 5


def test_the_norm_of_a_large_layer_does_not_drift() -> None:
    # A plain float32 sum of squares is off by 0.2 % here.
    its_grid = grid(10_000_000)
    clipped = float(clipped_sum(torch.full((1, 10_000_000), 1.1)).double().norm())
    assert 0.998 * its_grid.steps <= clipped <= its_grid.steps


@pytest.mark.parametrize("layout", ["expanded", "transposed"])
def test_the_layout_in_memory_does_not_matter_and_gradients_are_left_as_they_are(layout: str) -> None:
    one = torch.randn(300, 7, generator=torch.Generator().manual_seed(4))
    gradients = one.t() if layout == "transposed" else one[:1].expand(300, 7)
    before = gradients.clone()
    assert torch.equal(clipped_sum(gradients), clipped_sum(before))
    assert torch.equal(gradients, before)
