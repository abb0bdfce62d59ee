"""Residual network for small images (He et al. 2016, arXiv 1512.03385), with group normalisation.

The default is the ResNet-8 of the CIFAR family: a stem, three stages that double the channels and halve the
sides, global average pooling. GroupNorm (Wu & He 2018, arXiv 1803.08494) stands where the paper has
BatchNorm, which would mix the examples of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class ResnetConfig:
    """Options of the network.

    Attributes:
        width: channels of the first stage; each further stage has twice as many.
        blocks: number of residual blocks in each stage.
        groups: number of groups of each GroupNorm; divides `width`.
    """

    width: int = 16
    blocks: tuple[int, ...] = (1, 1, 1)
    groups: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.width <= 256:
            raise ValueError("width: from 1 to 256")
        if not 1 <= len(self.blocks) <= 4 or not all(1 <= count <= 32 for count in self.blocks):
            raise ValueError("blocks: 1 to 4 counts from 1 to 32")
        if self.groups < 1 or self.width % self.groups:
            raise ValueError(f"groups: a divisor of width {self.width}")


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + F(x)), where F is two 3x3 convolutions (He et al. 2016, equations 1 and 2).

    Maps (batch, before, height, width) to (batch, after, ceil(height / stride), ceil(width / stride)).
    """

    def __init__(self, before: int, after: int, stride: int, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(groups, after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.GroupNorm(groups, after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if (before, stride) != (after, 1):
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.GroupNorm(groups, after)
            )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """The block's output; see the class for shapes."""
        # Not `+=`: writing into a layer's output breaks the hooks that collect per-example gradients.
        return functional.relu(self.shortcut(features) + self.residual(features))


class Resnet(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, config: ResnetConfig, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, config.width, 3, padding=1, bias=False),
            nn.GroupNorm(config.groups, config.width),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = []
        before = config.width
        for stage, count in enumerate(config.blocks):
            after = config.width * 2**stage
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(ResidualBlock(before, after, stride, config.groups))
                before = after
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        features: torch.Tensor = self.blocks(self.stem(images))
        logits: torch.Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


def build(config: ResnetConfig, input_shape: tuple[int, ...], classes: int) -> Resnet:
    """The network for images of shape (channels, height, width).

    Raises:
        ValueError: the input is not an image with sides from 8 to 64.
    """
    if len(input_shape) != 3 or not all(8 <= side <= 64 for side in input_shape[1:]):
        raise ValueError("takes images (channels, height, width) with sides from 8 to 64")
    return Resnet(config, input_shape[0], classes)
