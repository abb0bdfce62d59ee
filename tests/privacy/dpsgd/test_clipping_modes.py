"""However gradients are clipped, no example moves the sum by more than the clipping norm."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.dpsgd.clipping import ClippingMode, clipped_sums, clipping_factors
from privacy.dpsgd.factors import Factors
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.linear_head import LinearHead
from privacy.example_sum_grid import SLACK
from privacy.release_grid import ReleaseGrid

MODES: tuple[ClippingMode, ...] = get_args(ClippingMode)
SIZES = (4, 1, 6)

modes = pytest.mark.parametrize("mode", MODES)


def gradients_of(seed: int, n: int, size: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(n, values, generator=generator, dtype=torch.float64) for values in SIZES]


def by_formula(gradients: list[Tensor], norm: float, mode: ClippingMode) -> list[Tensor]:
    """Each example's clipped gradient, one by one."""
    found = [torch.zeros_like(part) for part in gradients]
    for i in range(len(gradients[0])):
        whole = math.sqrt(sum(float((part[i] ** 2).sum()) for part in gradients))
        for part, clipped in zip(gradients, found, strict=True):
            own = float(part[i].norm())
            factor = {
                "flat": min(1.0, norm / whole),
                "per-layer": min(1.0, norm / math.sqrt(len(gradients)) / own),
                "automatic": norm / (whole + 0.01),
            }[mode]
            clipped[i] = part[i] * factor
    return found


@modes
@pytest.mark.parametrize("norm", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_sums_follow_the_formula(mode: ClippingMode, norm: float, size: float) -> None:
    gradients = gradients_of(1, 20, size)
    grid = ReleaseGrid.of(clipping_norm=norm, noise_multiplier=1.0, dimensions=sum(SIZES))
    for found, expected in zip(clipped_sums(gradients, grid, mode), by_formula(gradients, norm, mode), strict=True):
        assert (found * grid.step - expected.sum(0)).abs().max() <= 20 * grid.step * 2
    for found, part, expected in zip(
        clipping_factors(gradients, norm, mode), gradients, by_formula(gradients, norm, mode), strict=True
    ):
        assert torch.allclose(found[:, None] * part, expected, rtol=1e-9, atol=0)


@modes
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(*(st.sampled_from([0.0, 1e-40, 1e-8, 1.0, 1e8, 1e18, math.nan, math.inf]) for _ in SIZES)),
    norm=st.sampled_from([1e-9, 1.0, 1e9]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_rule_9_one_example_moves_the_sum_by_the_clipping_norm_at_most(
    mode: ClippingMode, seed: int, sizes: tuple[float, ...], norm: float, dtype: torch.dtype
) -> None:
    gradients = [part.to(dtype) for part in gradients_of(seed, 9)]
    for part, size in zip(gradients, sizes, strict=True):
        part[-1] *= size
    grid = ReleaseGrid.of(clipping_norm=norm, noise_multiplier=1.0, dimensions=sum(SIZES))
    with_it = torch.cat(clipped_sums(gradients, grid, mode))
    without = torch.cat(clipped_sums([part[:-1] for part in gradients], grid, mode))
    moved = sum(int(k) ** 2 for k in with_it - without)
    assert moved <= grid.steps**2
    if not all(map(math.isfinite, sizes)):
        assert moved == 0


@pytest.mark.parametrize("mode", MODES)
def test_factors_are_clipped_like_the_gradients_that_they_stand_for(mode: ClippingMode) -> None:
    generator = torch.Generator().manual_seed(3)
    factors = Factors(*(torch.randn(8, 1, size, generator=generator, dtype=torch.float64) for size in (5, 7)))
    beside = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    grid = ReleaseGrid.of(clipping_norm=2.0, noise_multiplier=1.0, dimensions=38)
    for some, other in zip(
        clipped_sums([factors, beside], grid, mode),
        clipped_sums([factors.rows().flatten(1), beside], grid, mode),
        strict=True,
    ):
        assert (some - other).abs().max() <= 8


@modes
def test_the_closed_form_of_a_linear_head_is_that_of_any_network(mode: ClippingMode) -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    x, y = torch.randn(50, 6) * torch.logspace(-2, 0.5, 50)[:, None], torch.randint(3, (50,))
    closed = clipped_gradient_sum(model, [(x, y)], clipping_norm=0.3, mode=mode)
    open_form = clipped_gradient_sum(
        nn.Sequential(model, nn.Identity(), _Passed()), [(x, y)], clipping_norm=0.3, mode=mode
    )
    assert abs(closed - open_form).max() <= 1e-5
    assert abs(closed).max() > 0.1


class _Passed(nn.Module):
    """What the head makes isn't what the network returns: no closed form."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0


@modes
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e300])
def test_rule_5_a_head_drops_what_is_not_finite(mode: ClippingMode, bad: float) -> None:
    torch.manual_seed(4)
    head = LinearHead(nn.Linear(6, 3).double())
    x, y = torch.randn(9, 6, dtype=torch.float64), torch.randint(3, (9,))
    without = head.clipped_sum(x[1:], y[1:], 0.3, mode)
    x[0] = bad
    moved = (head.clipped_sum(x, y, 0.3, mode) - without).norm()
    assert moved <= 0.3 * (1 + SLACK)
    if not math.isfinite(bad):
        assert moved <= 1e-14  # a product of one row less may round otherwise


@modes
def test_automatic_clipping_alone_lengthens_short_gradients(mode: ClippingMode) -> None:
    gradients = gradients_of(5, 6, 1e-3)
    longest = max(
        float((f[:, None] * g).norm(dim=1).max())
        for f, g in zip(clipping_factors(gradients, 1.0, mode), gradients, strict=True)
    )
    assert (longest > 0.1) == (mode == "automatic")
