"""Clip each example's gradient and round it to the grid, so that sums are exact (rule 9).

Each rounded gradient is a vector of whole numbers no longer than the clipping norm. Whole numbers add up without
rounding, in any order and any number of parts. So one example more changes the sum by its own rounded gradient and
by nothing else.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm

from privacy.dpsgd.factors import Factors
from privacy.release_grid import ReleaseGrid

# Squares are summed in blocks of this length, and the blocks in float64. Over a whole layer a float32 sum drifts
# (0.2 % at 10^7 parameters), and a norm found too small is a gradient clipped too little.
_BLOCK = 128

_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_SMALL, _COLUMNS = 1 << 16, 1 << 14  # values that stay in the cache; and values of `_EXACT / steps` rows that do


def clipped_sums(gradients: Sequence[Tensor | Factors], grid: ReleaseGrid) -> list[Tensor]:
    """The sum of the clipped gradients, in steps: one vector for each parameter.

    Gradients that are given as rows are rounded each, and their sum is int64; the sum of those given as factors is
    float64 and not rounded (`privacy.dpsgd.factors`). A gradient that is not finite, or whose squared norm is out of
    range, adds zero (rule 5).

    Args:
        gradients: per-example gradients of each parameter, of shape (examples, values), float32 or float64, or their
            factors; left as they are.
        grid: for as many dimensions as all parameters have values together.
    """
    rows = [gradient for gradient in gradients if isinstance(gradient, Tensor)]
    # All in one: hundreds of small operations cost more than copying.
    joined = [torch.cat(rows, dim=1) if len(rows) > 1 else rows[0].contiguous()] if rows else []
    left = [gradient for gradient in gradients if isinstance(gradient, Factors)]
    factors = _towards([*joined, *left], grid.norm, most=1 / grid.step)
    usable = factors > 0
    if not usable.all():  # 0 x NaN is NaN: such rows have to go
        factors, joined = factors[usable], [gradient[usable] for gradient in joined]
        left = [gradient.chosen(usable) for gradient in left]
    sums = [_rounded_sum(gradient, factors.to(gradient)[:, None], grid) for gradient in joined]
    of_rows = iter(torch.split(sums[0], [part.shape[1] for part in rows]) if sums else [])
    of_factors = iter([gradient.clipped_sum(factors).flatten() for gradient in left])
    return [next(of_rows if isinstance(gradient, Tensor) else of_factors) for gradient in gradients]


def _rounded_sum(rows: Tensor, factors: Tensor, grid: ReleaseGrid) -> Tensor:
    # Exact either way, hence the same: at once in float64, or a few rows at a time whose float32 sums are exact too.
    if rows.device.type != "cpu" or rows.numel() <= _SMALL:
        return (rows * factors).round_().sum(0, dtype=torch.float64).long()
    total = torch.zeros(rows.shape[1], dtype=torch.float64)
    count = _EXACT // grid.steps
    for some, scale in zip(torch.split(rows, count), torch.split(factors, count), strict=True):
        for part, sums in zip(torch.split(some, _COLUMNS, dim=1), torch.split(total, _COLUMNS), strict=True):
            sums.add_((part * scale).round_().sum(0))
    return total.long()


def clipping_factors(gradients: Sequence[Tensor | Factors], clipping_norm: float) -> Tensor:
    """What each gradient is multiplied by so that none is longer than a norm: of shape (examples,), float64.

    A gradient that is not finite, or whose squared norm is out of range, gets 0 (rule 5).

    Args:
        gradients: per-example gradients of each parameter, of shape (examples, values), float32 or float64, or their
            factors.
        clipping_norm: C, over all parameters together.
    """
    return _towards(gradients, clipping_norm, most=1.0)


def _towards(gradients: Sequence[Tensor | Factors], norm: float, *, most: float) -> Tensor:
    """What takes each gradient to a norm, at most `most`.

    The norm to clip to is lowered by what the norm of a block and the product may be off (Higham 2002, section 4.2:
    a sum of n squares is off by n roundings at most), and adding up the blocks in float64. Each row's factor depends
    on that row alone (on a CPU; on a GPU the order of additions may follow the size of the batch).
    """
    some = gradients[0] if isinstance(gradients[0], Tensor) else gradients[0].slopes
    precision = torch.finfo(some.dtype)
    squares = torch.zeros(len(some), dtype=torch.float64, device=some.device)
    terms = float(len(gradients))
    for gradient in gradients:
        if isinstance(gradient, Factors):
            squares += gradient.squared_norms()
        else:
            squares += _norms(gradient).square()
            terms += gradient.shape[1] / _BLOCK
    norms = squares.sqrt()
    allowed = norm * (1 - (_BLOCK / 4 + 4) * precision.eps - terms * 2.0**-53)
    factors = (allowed / norms).clamp(max=most)
    return torch.where(norms <= math.sqrt(precision.max), factors, 0.0)


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, in float64."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    blocks = rows[:, :whole].reshape(len(rows), whole // _BLOCK, _BLOCK)
    parts = [vector_norm(blocks, dim=2), vector_norm(rows[:, whole:], dim=1, keepdim=True)]
    norms: Tensor = vector_norm(torch.cat(parts, dim=1).double(), dim=1)
    return norms
