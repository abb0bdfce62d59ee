"""Evaluation where the data is: how many held-out examples the shared model gets right.

Under privacy the two numbers leave with noise (rule 10): one record changes each by at most one. Or, where the plan
counts by class, a table of true classes and guesses, of which one record changes one cell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.datasets.records import Records
from privacy.dpsgd.example_loss import NO_LABEL, PLAIN
from privacy.mechanisms import NoisyCounts, NoisyTable
from privacy.noise import NoiseSource
from shared_models.parameters import Parameters, set_parameters


def count_correct(model: nn.Module, parameters: Parameters, records: Records, *, batch_size: int) -> tuple[int, int]:
    """Numbers of right and of all examples; an example whose logits hold NaN is wrong (rule 5).

    Of an example that has a label at each place the last one is judged: so that it counts once (rule 10).

    Args:
        model: the plan's network on its device; its parameters are overwritten.
        parameters: the shared model.
        records: the client's held-out part; may be none.
        batch_size: examples evaluated at once.
    """
    correct = 0
    for logits, labels in _judged(model, parameters, records, batch_size):
        right = (logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)
        correct += int(right.sum())
    return correct, len(records)


def count_by_class(
    model: nn.Module, parameters: Parameters, records: Records, *, classes: int, batch_size: int
) -> npt.NDArray[np.int64]:
    """Numbers of examples (classes, classes) by true class and guess: each example is in one cell.

    One whose logits hold NaN, or whose largest is of no class, counts as taken for the class after its own: it is
    wrong, and still counted (rule 5).

    Args:
        model, parameters, records, batch_size: as of `count_correct`; records have one label each.
        classes: how many there are.
    """
    table = np.zeros((classes, classes), dtype=np.int64)
    for logits, labels in _judged(model, parameters, records, batch_size):
        guess = logits.argmax(dim=1)
        none = logits.isnan().any(dim=1) | (guess >= classes)
        guess = torch.where(none, (labels + 1) % classes, guess)
        np.add.at(table, (labels.numpy(), guess.numpy()), 1)
    return table


def mean_loss(model: nn.Module, parameters: Parameters, records: Records, *, batch_size: int) -> float:
    """Mean cross-entropy of a client's records, 0 if there are none: for sites that let it out unprotected."""
    device = next(model.parameters()).device
    set_parameters(model, parameters)
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for x, y in _batches(records, batch_size):
            total += float(PLAIN(model(x.to(device)).cpu(), y))
    return total / max(1, len(records))


def noisy_counts(correct: int, total: int, release: NoisyCounts, noise: NoiseSource) -> tuple[int, int]:
    """The two counts as they may leave: whole numbers, each with its own noise; either may be negative."""
    drawn = noise.grid_normal((2,), release.noise)
    return correct + int(drawn[0]), total + int(drawn[1])


def noisy_table(table: npt.NDArray[np.int64], release: NoisyTable, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """Counts by class as they may leave: whole numbers, each with its own noise; any may be negative."""
    drawn = noise.grid_normal(table.shape, release.noise)
    return table + np.asarray(drawn, dtype=np.int64)


def _judged(
    model: nn.Module, parameters: Parameters, records: Records, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (b, classes) and labels (b,) of some examples after others; of one with a label at each place the last."""
    device = next(model.parameters()).device
    set_parameters(model, parameters)
    model.eval()
    for x, y in _batches(records, batch_size):
        with torch.inference_mode():
            logits, labels = model(x.to(device)).cpu(), y
            if y.ndim > 1:
                rows, last = torch.arange(len(y)), _last_label(y)
                logits, labels = logits[rows, last], y[rows, last]
        yield logits, labels


def _last_label(y: Tensor) -> Tensor:
    """The last place (n,) of each row (n, places) that has a label; of rows without one, the first."""
    places = torch.arange(y.shape[1])
    return torch.where(y != NO_LABEL, places, 0).amax(1)


def _batches(records: Records, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    if len(records) > 0:  # torch would make one batch of none, which not every network can take (rule 5)
        yield from zip(torch.split(records.x, size), torch.split(records.y, size), strict=True)
