"""Plain convolutional network: 3 x 3 convolutions, one pooling, one dense layer (McMahan et al. 2017, arXiv 1602.05629,
section 3, in the form that federated benchmarks use: Reddi et al. 2021, arXiv 2003.00295; pfl-research, arXiv
2404.06430).

Nothing in it is normalised, so it treats each example by itself. Nearly all of its parameters are in the dense layer:
1,626,442 in all for images of 3 x 32 x 32 and ten classes. Under privacy the noise grows with that number; `cnn` is the
network for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

_KERNEL = 3
_POOL = 2


@dataclass(frozen=True)
class ConvnetConfig:
    """Options of the network.

    Attributes:
        channels: output channels of each convolution; each takes 2 from the sides of the map, for nothing is padded.
        hidden: width of the dense layer before the logits.
        dropout: probability that a value of the pooled map is left out in a training step, in [0, 1).
        hidden_dropout: likewise, of the dense layer.
    """

    channels: tuple[int, ...] = (32, 64)
    hidden: int = 128
    dropout: float = 0.0
    hidden_dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 8 or not all(1 <= count <= 1024 for count in self.channels):
            raise ValueError("channels: 1 to 8 counts from 1 to 1024")
        if not 1 <= self.hidden <= 4096:
            raise ValueError("hidden: from 1 to 4096")
        for key in ("dropout", "hidden_dropout"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"{key}: from 0 to below 1")


class Convnet(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, config: ConvnetConfig, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        before, height, width = input_shape
        features: list[nn.Module] = []
        for after in config.channels:
            features += [nn.Conv2d(before, after, _KERNEL), nn.ReLU()]
            before = after
        lost = (_KERNEL - 1) * len(config.channels)
        self.features = nn.Sequential(*features, nn.MaxPool2d(_POOL), *_dropout(config.dropout))
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(before * ((height - lost) // _POOL) * ((width - lost) // _POOL), config.hidden),
            nn.ReLU(),
            *_dropout(config.hidden_dropout),
            nn.Linear(config.hidden, classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def build(config: ConvnetConfig, input_shape: tuple[int, ...], classes: int) -> Convnet:
    """The network for images of shape (channels, height, width).

    Raises:
        ValueError: the input is not an image with sides from 8 to 64, or so many convolutions leave nothing of it.
    """
    if len(input_shape) != 3 or not all(8 <= side <= 64 for side in input_shape[1:]):
        raise ValueError("takes images (channels, height, width) with sides from 8 to 64")
    channels, height, width = input_shape
    most = (min(height, width) - _POOL) // (_KERNEL - 1)
    if len(config.channels) > most:
        raise ValueError(f"channels: at most {most} counts for images of {height}x{width}")
    return Convnet(config, (channels, height, width), classes)


def _dropout(rate: float) -> list[nn.Module]:
    return [nn.Dropout(rate)] if rate > 0 else []
