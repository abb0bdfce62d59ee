"""Small convolutional network for images of 8x8 to 64x64 (LeCun et al. 1998), with group normalisation.

GroupNorm (Wu & He 2018, arXiv 1803.08494) normalises each example by itself, where BatchNorm would mix the
examples of a batch and void per-example clipping. The default has about the size of the network that
Papernot et al. (2021, arXiv 2007.14191) train with DP-SGD: 26 thousand parameters, because the noise grows
with their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
_KERNEL = 5
_GRID = 4  # side of the feature map that the dense layers see, whatever the size of the image


@dataclass(frozen=True)
class CnnConfig:
    """Options of the network.

    Attributes:
        channels: output channels of each convolution.
        hidden: width of the dense layer before the logits.
        activation: "tanh" bounds what a layer passes on, which often helps under clipping (Papernot et al.
            2021).
        groups: number of groups of each GroupNorm; divides every entry of `channels`.
    """

    channels: tuple[int, ...] = (16, 32)
    hidden: int = 24
    activation: Literal["relu", "tanh"] = "relu"
    groups: int = 4

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 8 or not all(1 <= count <= 1024 for count in self.channels):
            raise ValueError("channels: 1 to 8 counts from 1 to 1024")
        if not 1 <= self.hidden <= 4096:
            raise ValueError("hidden: from 1 to 4096")
        if self.groups < 1 or any(count % self.groups for count in self.channels):
            raise ValueError(f"groups: a common divisor of channels {list(self.channels)}")


class Cnn(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, config: CnnConfig, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        before, height, width = input_shape
        features: list[nn.Module] = []
        for after in config.channels:
            # Halve the map as long as the smallest side keeps what the dense layers want to see.
            stride = 2 if min(height, width) >= 2 * _GRID else 1
            height, width = -(-height // stride), -(-width // stride)
            features += [
                nn.Conv2d(before, after, _KERNEL, stride=stride, padding=_KERNEL // 2),
                nn.GroupNorm(config.groups, after),
                _ACTIVATIONS[config.activation](),
            ]
            before = after
        self.features = nn.Sequential(*features)
        self.pool = nn.AdaptiveAvgPool2d(_GRID)
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * _GRID * _GRID, config.hidden),
            _ACTIVATIONS[config.activation](),
            nn.Linear(config.hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        logits: torch.Tensor = self.head(self.pool(self.features(images)))
        return logits


def build(config: CnnConfig, input_shape: tuple[int, ...], classes: int) -> Cnn:
    """The network for images of shape (channels, height, width).

    Raises:
        ValueError: the input is not an image with sides from 8 to 64.
    """
    if len(input_shape) != 3 or not all(8 <= side <= 64 for side in input_shape[1:]):
        raise ValueError("takes images (channels, height, width) with sides from 8 to 64")
    channels, height, width = input_shape
    return Cnn(config, (channels, height, width), classes)
