"""Vision transformer for small images (Dosovitskiy et al. 2021, arXiv 2010.11929).

Built from layers that give per-example gradients: positions are an `Embedding`, and the mean over the patches stands
where the paper has a class token (Beyer et al. 2022, arXiv 2205.01580).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from shared_models.attention import Block


@dataclass(frozen=True)
class VitConfig:
    """Options of the network.

    Attributes:
        patch: side of a patch in pixels; divides height and width. 0 means the largest common divisor of both
            that is at most a quarter of the shorter side: 2 for 8x8, 7 for 28x28, 8 for 32x32.
        dim: width of a token; a multiple of `heads`.
        depth: number of transformer blocks.
        heads: number of attention heads.
        mlp_ratio: width of a block's hidden layer, in units of `dim`.
        dropout: probability that a value of a block's output is left out in a training step, in [0, 1).
    """

    patch: int = 0
    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.patch <= 64:
            raise ValueError("patch: from 1 to 64, or 0 to choose one that fits")
        if not 1 <= self.dim <= 1024:
            raise ValueError("dim: from 1 to 1024")
        if not 1 <= self.depth <= 32:
            raise ValueError("depth: from 1 to 32")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads: a divisor of dim {self.dim}")
        if not 1 <= self.mlp_ratio <= 8:
            raise ValueError("mlp_ratio: from 1 to 8")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class Vit(nn.Module):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, config: VitConfig, input_shape: tuple[int, int, int], patch: int, classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, config.dim)
        self.positions = nn.Embedding((height // patch) * (width // patch), config.dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        hidden = config.dim * config.mlp_ratio
        self.blocks = nn.Sequential(
            *(Block(config.dim, config.heads, hidden, config.dropout) for _ in range(config.depth))
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        patches = to_patches(images, self.patch)
        # The indices are repeated for each example so that each gets its own gradient of the embedding.
        places = torch.arange(patches.shape[1], device=images.device).expand(patches.shape[:2])
        tokens = self.blocks(self.embed(patches) + self.positions(places))
        logits: torch.Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


def to_patches(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Cut images (batch, channels, height, width) into (batch, patches, channels * patch**2), row by row."""
    batch, channels, height, width = images.shape
    tiles = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def patch_side(height: int, width: int) -> int:
    """The largest common divisor of both sides that is at most a quarter of the shorter one."""
    common = math.gcd(height, width)
    return max(side for side in range(1, min(height, width) // 4 + 1) if common % side == 0)


def build(config: VitConfig, input_shape: tuple[int, ...], classes: int) -> Vit:
    """The network for images of shape (channels, height, width).

    Raises:
        ValueError: the input is not an image with sides from 8 to 64, or can't be cut into such patches.
    """
    if len(input_shape) != 3 or not all(8 <= side <= 64 for side in input_shape[1:]):
        raise ValueError("takes images (channels, height, width) with sides from 8 to 64")
    channels, height, width = input_shape
    patch = config.patch or patch_side(height, width)
    common = math.gcd(height, width)
    if common % patch:
        divisors = [side for side in range(1, common + 1) if common % side == 0]
        raise ValueError(f"patch: 0, or a common divisor of height {height} and width {width}: {divisors}")
    return Vit(config, (channels, height, width), patch, classes)
