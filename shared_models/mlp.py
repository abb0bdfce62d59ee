"""Multilayer perceptron (Rumelhart, Hinton & Williams 1986), for tables and small images.

Every layer treats the examples of a batch one by one, as per-example clipping (DP-SGD) needs. Without
hidden layers it is softmax regression.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


@dataclass(frozen=True)
class MlpConfig:
    """Options of the network.

    Attributes:
        hidden: width of each hidden layer; none at all is softmax regression.
        activation: "tanh" bounds what a layer passes on, which often helps under clipping (Papernot et al.
            2021, arXiv 2007.14191).
        dropout: probability that a hidden unit is left out in a training step, in [0, 1).
    """

    hidden: tuple[int, ...] = (64, 32)
    activation: Literal["relu", "tanh"] = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if len(self.hidden) > 16 or not all(1 <= width <= 4096 for width in self.hidden):
            raise ValueError("hidden: at most 16 widths from 1 to 4096")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class Mlp(nn.Module):
    """Maps (batch, *input_shape) to logits (batch, classes)."""

    def __init__(self, config: MlpConfig, inputs: int, classes: int) -> None:
        super().__init__()
        widths = (inputs, *config.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), _ACTIVATIONS[config.activation]()]
            if config.dropout > 0:
                layers.append(nn.Dropout(config.dropout))
        layers.append(nn.Linear(widths[-1], classes))
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of a batch (batch, *input_shape)."""
        logits: torch.Tensor = self.layers(inputs)
        return logits


def build(config: MlpConfig, input_shape: tuple[int, ...], classes: int) -> Mlp:
    """The network for examples of any shape; they are flattened."""
    return Mlp(config, math.prod(input_shape), classes)
