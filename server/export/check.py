"""What an exported file computes beside the network in torch: how far apart, how large, how quick."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

_ALONE: Final = 30  # examples asked one by one


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A comparison.

    Attributes:
        largest_difference: of any logit, over the largest logit.
        same_guess: part of the examples for which both guess the same class.
        bytes: of the file.
        milliseconds: of one example by itself (median).
        torch_milliseconds: likewise, of the network in torch.
    """

    largest_difference: float
    same_guess: float
    bytes: int
    milliseconds: float
    torch_milliseconds: float


def check(network: nn.Module, run: Callable[[Tensor], Tensor], examples: Tensor, path: Path) -> Checked:
    """Compare a file with the network that it was made of.

    Args:
        network: in torch, as it was before anything was pruned or rounded.
        run: what the file computes.
        examples: (n, *input_shape).
        path: of the file.
    """
    with torch.no_grad():
        expected, found = network(examples), run(examples)
        largest = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        same = float((found.argmax(-1) == expected.argmax(-1)).double().mean())
        ones = [examples[i % len(examples)][None] for i in range(_ALONE)]
        return Checked(
            largest_difference=largest,
            same_guess=same,
            bytes=path.stat().st_size,
            milliseconds=_median(run, ones),
            torch_milliseconds=_median(network, ones),
        )


def _median(run: Callable[[Tensor], Tensor], examples: list[Tensor]) -> float:
    run(examples[0])
    taken = []
    for one in examples:
        begun = time.perf_counter()
        run(one)
        taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken)
