"""Surfaces of made-up things: rather even, with a faint texture, folds and shading; now and then stripes or a print."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from shared_models.features.draws import Draws

# Knots of smooth shading, and how strong it is at most.
_FOLDS: Final = (((4, 4), 0.25), ((3, 9), 0.15), ((9, 3), 0.07))


def painted(textures: Tensor, whole: Tensor, apart: Tensor, generator: np.random.Generator) -> Tensor:
    """Pictures (n, 1, H, W) in [0, 1] of things on black.

    Args:
        textures: (n, 1, H, W), cut from photographs.
        whole: silhouettes of the things, (n, 1, H, W) in [0, 1].
        apart: of those parts that may be of another brightness.
        generator: the surfaces follow from it.
    """
    draws = Draws(len(textures), generator, axes=3)
    found = _surface(textures, draws)
    tint = torch.where(draws.coin(0.4), draws.uniform(0.3, 1.6), 1.0)
    found = found * (1 + (tint - 1) * apart)
    inside = nn.avg_pool2d(nn.pad(whole, (2, 2, 2, 2)), 5, stride=1)  # less near the outline: darker there, or lighter
    found = found * (1 + draws.uniform(-0.5, 0.8) * (inside - 1))
    return found.clamp_(0.02, 1).mul_(whole)


def _surface(textures: Tensor, draws: Draws) -> Tensor:
    height, width = textures.shape[2:]
    y, x = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)[None, :]
    spread = textures.std((2, 3), keepdim=True) + 0.01
    texture = ((textures - textures.mean((2, 3), keepdim=True)) / spread).clamp(-2.5, 2.5)
    found = 1 + 0.3 * draws.uniform(0, 1) ** 3 * texture
    found = found + draws.coin(0.15) * draws.uniform(0, 0.4) * _stripes(x, y, draws)
    for knots, most in _FOLDS:
        shade = draws.smooth_field(knots, (height, width))
        shade = torch.where(draws.coin(0.5), (shade + shade.flip(3)) / 1.4, shade)
        found = found * (1 + draws.uniform(0, most) * shade)
    found = found * draws.uniform(0.15, 1) ** 0.8
    found = torch.where(_print(x, y, draws) & draws.coin(0.25), _printed(found, texture, draws), found)
    seam = ((x - draws.coin(0.4) * draws.uniform(-0.3, 0.3)).abs() < 0.06) & draws.coin(0.25)
    found = torch.where(seam, found * draws.uniform(0.4, 1.4), found)
    noise = draws.generator.standard_normal((draws.count, 1, height, width))
    return found + 0.04 * draws.uniform(0, 1) ** 2 * torch.from_numpy(noise).float()


def _stripes(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """Waves: half of them across, three of ten along, the others slanted."""
    way, slant = draws.uniform(0, 1), draws.uniform(0, math.pi)
    angle = torch.where(way < 0.5, 0.0, torch.where(way < 0.8, math.pi / 2, slant))
    return torch.sin((x * angle.cos() + y * angle.sin()) * draws.uniform(3, 35) + draws.uniform(0, 2 * math.pi))


def _print(x: Tensor, y: Tensor, draws: Draws) -> Tensor:
    """A rectangle or an ellipse."""
    right = (x - draws.coin(0.5) * draws.uniform(-0.4, 0.4)).abs() / draws.uniform(0.05, 0.5)
    down = (y - draws.uniform(-0.6, 0.6)).abs() / draws.uniform(0.05, 0.5)
    return torch.where(draws.coin(0.5), torch.maximum(right, down), torch.hypot(right, down)) < 1


def _printed(found: Tensor, texture: Tensor, draws: Draws) -> Tensor:
    return 0.4 * found + 0.6 * draws.uniform(0, 1) * (1 + 0.5 * draws.coin(0.5) * texture)
