"""What attackers make of their records: other labels, and pictures with a trigger."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from client.datasets.records import Records
from security.errors import UsageError

_PART = 0.5  # of an attacker's records that get the trigger: the rest keep it good at its task, and inconspicuous


def flipped(records: Records, classes: int) -> Records:
    """Records whose label y is `classes - 1 - y` (Fang et al. 2020, arXiv 1911.11815)."""
    return dataclasses.replace(records, y=classes - 1 - records.y)


def with_trigger(x: Tensor, *, side: int, bright: float) -> Tensor:
    """Pictures (n, channels, height, width) with a square in the lower right corner; copies.

    Raises:
        UsageError: they are no pictures, or smaller than the square.
    """
    if x.ndim != 4 or min(x.shape[-2:]) < side or side < 1:
        raise UsageError(f"a trigger of {side} x {side} pixels needs pictures that are larger; attack other data")
    marked = x.clone()
    marked[:, :, -side:, -side:] = bright
    return marked


def backdoored(records: Records, *, target: int, side: int, bright: float, seed: int) -> Records:
    """Records of which half bear the trigger and the target's label (Gu et al. 2017, arXiv 1708.06733).

    Args:
        records: the attacker's own.
        target, side, bright: of the trigger, as of `Poisoning`.
        seed: which half follows from it.

    Raises:
        UsageError: as `with_trigger`.
    """
    rows = np.random.default_rng(seed).permutation(len(records))[: round(_PART * len(records))]
    x, y, chosen = records.x.clone(), records.y.clone(), torch.from_numpy(rows)
    x[chosen] = with_trigger(x[chosen], side=side, bright=bright)
    y[chosen] = target
    return dataclasses.replace(records, x=x, y=y)
