"""Clip each example's gradient and round it to the grid, so that sums are exact (rule 9).

Three ways to clip, all of which leave no gradient longer than C: `flat` shortens what is longer (Abadi et al. 2016,
algorithm 1); `per-layer` shortens each parameter's part to C over the root of their number (McMahan et al. 2018, arXiv
1710.06963, section 3.1); `automatic` brings nearly all to length C, whatever they were, so that only a learning rate is
to be chosen: a gradient g becomes C g / (|g| + .01) (AUTO-S of Bu et al. 2023, arXiv 2206.07136, equation 4.1).

Each rounded gradient is a vector of whole numbers no longer than the clipping norm. Whole numbers add up without
rounding, in any order and any number of parts. So one example more changes the sum by its own rounded gradient and
by nothing else.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from privacy.dpsgd.factors import Factors
from privacy.release_grid import ReleaseGrid

ClippingMode = Literal["flat", "per-layer", "automatic"]
"""How gradients are brought to a norm."""

Gradient = Tensor | Factors
"""Of one parameter, of each example: (examples, values), or the factors of that."""

STABLE = 0.01
"""Added to a norm by automatic clipping, so that a gradient near zero isn't blown up."""

# Squares are summed in blocks of this length, and the blocks in float64. Over a whole layer a float32 sum drifts
# (0.2 % at 10^7 parameters), and a norm found too small is a gradient clipped too little.
_BLOCK = 128

_WIDE = 1 << 13  # values of a parameter whose gradients are worth operations of their own
_EXACT = 1 << 24  # whole numbers up to here are exact in float32
_SMALL, _COLUMNS = 1 << 16, 1 << 14  # values that stay in the cache; and values of `_EXACT / steps` rows that do


def clipped_sums(gradients: Sequence[Gradient], grid: ReleaseGrid, mode: ClippingMode = "flat") -> list[Tensor]:
    """The sum of the clipped gradients, in steps: one vector for each parameter.

    Gradients that are given as rows are rounded each, and their sum is int64; the sum of those given as factors is
    float64 and not rounded (`privacy.dpsgd.factors`). A gradient that is not finite, or whose squared norm is out of
    range, adds zero (rule 5).

    Args:
        gradients: of each parameter, float32 or float64; left as they are.
        grid: for as many dimensions as all parameters have values together.
        mode: how they are clipped.
    """
    if mode == "per-layer":
        factors = _of_layers(gradients, grid.norm, most=1 / grid.step)
        return [sums_of([part], factor, grid)[0] for part, factor in zip(gradients, factors, strict=True)]
    joined = join_rows(gradients)
    factor = _of_all(joined, grid.norm, 1 / grid.step, mode)
    return split_rows(sums_of(joined, factor, grid), gradients)


def clipping_factors(gradients: Sequence[Gradient], clipping_norm: float, mode: ClippingMode = "flat") -> list[Tensor]:
    """What each parameter's gradients are multiplied by so that no example is longer than a norm: (examples,), float64.

    A gradient that is not finite, or whose squared norm is out of range, gets 0 (rule 5).

    Args:
        gradients: of each parameter, float32 or float64.
        clipping_norm: C, over all parameters together.
        mode: how they are clipped.
    """
    if mode == "per-layer":
        return _of_layers(gradients, clipping_norm, most=1.0)
    return [_of_all(gradients, clipping_norm, 1.0, mode)] * len(gradients)


def join_rows(gradients: Sequence[Gradient]) -> list[Gradient]:
    """The same with all narrow rows in one, first: dozens of small operations cost more than copying does."""
    narrow = [gradient for gradient in gradients if _is_narrow(gradient)]
    joined: list[Gradient] = [torch.cat([part for part in narrow if isinstance(part, Tensor)], dim=1)] if narrow else []
    return [*joined, *(gradient for gradient in gradients if not _is_narrow(gradient))]


def split_rows(sums: Sequence[Tensor], gradients: Sequence[Gradient]) -> list[Tensor]:
    """Sums of what `join_rows` joined, for each gradient again."""
    narrow = [part.shape[1] for part in gradients if isinstance(part, Tensor) and _is_narrow(part)]
    of_narrow = iter(torch.split(sums[0], narrow) if narrow else [])
    others = iter(sums[1:] if narrow else sums)
    return [next(of_narrow if _is_narrow(gradient) else others) for gradient in gradients]


def _is_narrow(gradient: Gradient) -> bool:
    return isinstance(gradient, Tensor) and gradient.shape[1] < _WIDE


def sums_of(gradients: Sequence[Gradient], factors: Tensor, grid: ReleaseGrid) -> list[Tensor]:
    """Sums of factor times gradient, in steps: int64 of rows, each rounded, and float64 of factors.

    Args:
        gradients: of each parameter.
        factors: (examples,), float64; where 0, a gradient may hold anything.
        grid: whose steps they are in.
    """
    usable = factors > 0
    chosen = list(gradients)
    if not usable.all():  # 0 x NaN is NaN: such rows have to go
        factors = factors[usable]
        chosen = [part.chosen(usable) if isinstance(part, Factors) else part[usable] for part in chosen]
    return [
        part.clipped_sum(factors).flatten()
        if isinstance(part, Factors)
        else _rounded_sum(part.contiguous(), factors.to(part)[:, None], grid)
        for part in chosen
    ]


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


def towards(gradients: Sequence[Gradient], norm: float, *, most: float, stable: float = 0.0) -> Tensor:
    """What takes each example's gradient to a norm, at most `most`; 0 if it is not finite or out of range.

    The norm to clip to is lowered by what the norm of a block and the product may be off (Higham 2002, section 4.2:
    a sum of n squares is off by n roundings at most), and adding up the blocks in float64. Each row's factor depends
    on that row alone (on a CPU; on a GPU the order of additions may follow the size of the batch).

    Args:
        gradients: of each parameter; the norm is over all of them together.
        norm: none becomes longer.
        most: of a factor.
        stable: added to each length.

    Returns:
        (examples,), float64.
    """
    found, slack, largest = _lengths(gradients)
    factors = (norm * (1 - slack) / (found + stable)).clamp(max=most)
    return torch.where(found <= largest, factors, 0.0)


def lengths(gradients: Sequence[Gradient]) -> Tensor:
    """Length of each example's gradient: (examples,), float64; infinite if it is not finite or out of range."""
    found, _, largest = _lengths(gradients)
    return torch.where(found <= largest, found, math.inf)


def _of_all(gradients: Sequence[Gradient], norm: float, most: float, mode: ClippingMode) -> Tensor:
    if mode == "automatic":
        return towards(gradients, norm, most=math.inf, stable=STABLE)
    return towards(gradients, norm, most=most)


def _of_layers(gradients: Sequence[Gradient], norm: float, *, most: float) -> list[Tensor]:
    """Factors of each parameter's part by itself; all 0 for an example of which any isn't finite."""
    share = norm / math.sqrt(len(gradients))
    found = [towards([gradient], share, most=most) for gradient in gradients]
    usable = torch.stack(found).min(dim=0).values > 0
    return [torch.where(usable, factors, 0.0) for factors in found]


def _lengths(gradients: Sequence[Gradient]) -> tuple[Tensor, float, float]:
    """Lengths, what part of one they may be too small by, and the longest that squares are in range of."""
    some = gradients[0] if isinstance(gradients[0], Tensor) else gradients[0].slopes
    precision = torch.finfo(some.dtype)
    squares = torch.zeros(len(some), dtype=torch.float64, device=some.device)
    terms = float(len(gradients))
    for gradient in gradients:
        if isinstance(gradient, Factors):
            squares += gradient.squared_norms()
        else:
            squares += _norms(gradient.contiguous()).square()
            terms += gradient.shape[1] / _BLOCK
    slack = (_BLOCK / 4 + 4) * precision.eps + terms * 2.0**-53
    return squares.sqrt(), slack, math.sqrt(precision.max)


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, in float64."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    blocks = rows[:, :whole].reshape(len(rows), whole // _BLOCK, _BLOCK)
    parts = [vector_norm(blocks, dim=2), vector_norm(rows[:, whole:], dim=1, keepdim=True)]
    norms: Tensor = vector_norm(torch.cat(parts, dim=1).double(), dim=1)
    return norms
