"""One-dimensional convolutional network for signals of sensors (Wang, Yan & Oates 2017, arXiv 1611.06455), with group
normalisation.

The paper's fully convolutional network: convolutions along time, global average pooling, one affine layer. GroupNorm
(Wu & He 2018, arXiv 1803.08494) stands where it has BatchNorm, which would mix the examples of a batch; poolings halve
the times between convolutions, so that later kernels see more of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

_SHORTEST = 4  # times that a pooling leaves


@dataclass(frozen=True)
class Cnn1dConfig:
    """Options of the network.

    Attributes:
        channels: output channels of each convolution.
        kernels: length of each convolution's kernel in times, odd; as many as `channels`.
        groups: number of groups of each GroupNorm; divides every entry of `channels`.
        dropout: probability that a value before the logits is left out in a training step, in [0, 1).
    """

    channels: tuple[int, ...] = (32, 64, 64)
    kernels: tuple[int, ...] = (7, 5, 3)
    groups: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 8 or not all(1 <= count <= 1024 for count in self.channels):
            raise ValueError("channels: 1 to 8 counts from 1 to 1024")
        if len(self.kernels) != len(self.channels) or not all(1 <= k <= 63 and k % 2 for k in self.kernels):
            raise ValueError(f"kernels: {len(self.channels)} odd lengths from 1 to 63, one for each of channels")
        if self.groups < 1 or any(count % self.groups for count in self.channels):
            raise ValueError(f"groups: a common divisor of channels {list(self.channels)}")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class Cnn1d(nn.Module):
    """Maps signals (batch, channels, times) to logits (batch, classes)."""

    def __init__(self, config: Cnn1dConfig, channels: int, times: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for after, kernel in zip(config.channels, config.kernels, strict=True):
            layers += [
                nn.Conv1d(channels, after, kernel, padding=kernel // 2, bias=False),
                nn.GroupNorm(config.groups, after),
                nn.ReLU(),
            ]
            if times >= 2 * _SHORTEST:
                layers.append(nn.MaxPool1d(2))
                times //= 2
            channels = after
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels, classes)

    def forward(self, signals: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of signals (batch, channels, times)."""
        features: torch.Tensor = self.features(signals)
        logits: torch.Tensor = self.head(self.dropout(features.mean(dim=2)))
        return logits


def build(config: Cnn1dConfig, input_shape: tuple[int, ...], classes: int) -> Cnn1d:
    """The network for signals of shape (channels, times).

    Raises:
        ValueError: the input is no signal of at least 8 times.
    """
    if len(input_shape) != 2 or not 8 <= input_shape[1] <= 65536:
        raise ValueError("takes signals (channels, times) of 8 to 65536 times")
    return Cnn1d(config, input_shape[0], input_shape[1], classes)
