"""Inception network for small images (Szegedy et al. 2015, arXiv 1409.4842), with group normalisation.

Each module looks at its input in four ways at once, through kernels of 1, 3 and 5 and through a pooling, and puts the
results side by side; the kernel of 5 is two of 3 (Szegedy et al. 2016, arXiv 1512.00567, section 3.1). GroupNorm (Wu &
He 2018, arXiv 1803.08494) stands where the later papers have BatchNorm, which would mix the examples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

_BRANCHES = 4


@dataclass(frozen=True)
class InceptionConfig:
    """Options of the network.

    Attributes:
        width: channels of each of a module's four branches in the first stage; each further stage has twice as many.
        modules: number of modules in each stage; a pooling halves the sides between two stages.
        groups: number of groups of each GroupNorm; divides `width`.
        dropout: probability that a value before the logits is left out in a training step, in [0, 1).
    """

    width: int = 8
    modules: tuple[int, ...] = (1, 1)
    groups: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 256:
            raise ValueError("width: from 1 to 256")
        if not 1 <= len(self.modules) <= 4 or not all(1 <= count <= 16 for count in self.modules):
            raise ValueError("modules: 1 to 4 counts from 1 to 16")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"groups: a divisor of width {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class InceptionModule(nn.Module):
    """Maps (batch, before, height, width) to (batch, 4 * width, height, width)."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.one = _convolution(before, width, 1, groups)
        self.three = nn.Sequential(_convolution(before, width, 1, groups), _convolution(width, width, 3, groups))
        self.five = nn.Sequential(
            _convolution(before, width, 1, groups),
            _convolution(width, width, 3, groups),
            _convolution(width, width, 3, groups),
        )
        self.pooled = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _convolution(before, width, 1, groups))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The four branches, side by side."""
        return torch.cat([branch(features) for branch in (self.one, self.three, self.five, self.pooled)], dim=1)


class Inception(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, config: InceptionConfig, channels: int, classes: int) -> None:
        super().__init__()
        before = config.width * _BRANCHES
        layers: list[nn.Module] = [_convolution(channels, before, 3, config.groups)]
        for stage, count in enumerate(config.modules):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                width = config.width * 2**stage
                layers.append(InceptionModule(before, width, config.groups))
                before = width * _BRANCHES
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        features: torch.Tensor = self.features(images)
        logits: torch.Tensor = self.head(self.dropout(features.mean(dim=(2, 3))))
        return logits


def build(config: InceptionConfig, input_shape: tuple[int, ...], classes: int) -> Inception:
    """The network for images of shape (channels, height, width).

    Raises:
        ValueError: the input is not an image with sides from 8 to 64.
    """
    if len(input_shape) != 3 or not all(8 <= side <= 64 for side in input_shape[1:]):
        raise ValueError("takes images (channels, height, width) with sides from 8 to 64")
    return Inception(config, input_shape[0], classes)


def _convolution(before: int, after: int, kernel: int, groups: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False), nn.GroupNorm(groups, after), nn.ReLU()
    )
