"""What an exported file computes beside the network in torch: how far apart, how large, how quick."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

_TIMED: Final = 30  # batches of each size; slower ones fewer
_LONG: Final = 1.5  # seconds
_LEAST: Final = 3

BATCH: Final = 64
"""Examples that are asked at once."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A comparison.

    Attributes:
        largest_difference: of any logit, over the largest logit.
        same_guess: part of the examples for which both guess the same class.
        bytes: of the file.
        milliseconds: of one example by itself (median), of one thread's processor time: what it takes on a machine that
            does nothing else.
        torch_milliseconds: likewise, of the network in torch.
        batch_milliseconds, torch_batch_milliseconds: likewise, of `BATCH` examples at once.
    """

    largest_difference: float
    same_guess: float
    bytes: int
    milliseconds: float
    torch_milliseconds: float
    batch_milliseconds: float
    torch_batch_milliseconds: float


def check(network: nn.Module, run: Callable[[Tensor], Tensor], examples: Tensor, path: Path) -> Checked:
    """Compare a file with the network that it was made of.

    Args:
        network: in torch, as it was before anything was pruned or rounded.
        run: what the file computes.
        examples: (n, *input_shape).
        path: of the file.
    """
    with torch.inference_mode(), _one_thread():
        expected, found = network(examples), run(examples)
        largest = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
        same = float((found.argmax(-1) == expected.argmax(-1)).double().mean())
        return Checked(
            largest_difference=largest,
            same_guess=same,
            bytes=path.stat().st_size,
            milliseconds=_median(run, examples, 1),
            torch_milliseconds=_median(network, examples, 1),
            batch_milliseconds=_median(run, examples, BATCH),
            torch_batch_milliseconds=_median(network, examples, BATCH),
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """As onnxruntime has it here: else the two couldn't be compared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median(run: Callable[[Tensor], Tensor], examples: Tensor, size: int) -> float:
    batches = [examples[start : start + size] for start in range(0, len(examples) - size + 1, size)]
    run(batches[0])
    taken: list[float] = []
    while len(taken) < _TIMED and (len(taken) < _LEAST or sum(taken) < _LONG):
        batch = batches[len(taken) % len(batches)]
        begun = time.process_time()
        run(batch)
        taken.append(time.process_time() - begun)
    return 1000 * statistics.median(taken)
