"""Pixels to what a network sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared_models.cards import DataCard


def normalise(values: npt.NDArray[Any], card: DataCard) -> Tensor:
    """`(value - mean) / std` by the card's public constants, as a new float32 tensor of the same shape.

    uint8 values (pixels) are first scaled from 0..255 to [0, 1]; other values are taken as they are.
    """
    # float32 always copies here: callers may keep and share what they pass in.
    x = torch.from_numpy(values.astype(np.float32))
    if values.dtype == np.uint8:
        x.div_(255)
    return x.sub_(card.mean).div_(card.std)
