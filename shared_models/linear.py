"""One affine layer on the flattened input: softmax regression, the head for frozen features.

Its weights begin at zero, whatever the seed: every class is then as likely, the loss is convex, and no step of a
private run is spent on forgetting a random start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LinearConfig:
    """It has no options."""


class Linear(nn.Module):
    """Maps (batch, *input_shape) to logits (batch, classes)."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, classes)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of a batch (batch, *input_shape)."""
        logits: torch.Tensor = self.layer(inputs.flatten(1))
        return logits


def build(config: LinearConfig, input_shape: tuple[int, ...], classes: int) -> Linear:
    """The layer for examples of any shape; they are flattened."""
    del config
    return Linear(math.prod(input_shape), classes)
