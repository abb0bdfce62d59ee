"""Random numbers for many drawings at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn


@dataclass(frozen=True)
class Draws:
    """One number for each of so many things; every call draws new ones.

    Attributes:
        count: n, of things.
        generator: where they come from.
        axes: how many axes of length 1 stand behind that of the things.
    """

    count: int
    generator: np.random.Generator
    axes: int

    def uniform(self, low: float, high: float) -> Tensor:
        """Between two bounds: float32 (n, 1, ...)."""
        return self._spread(torch.from_numpy(self.generator.uniform(low, high, self.count).astype(np.float32)))

    def coin(self, chance: float) -> Tensor:
        """True with that chance: (n, 1, ...)."""
        return self._spread(torch.from_numpy(self.generator.random(self.count) < chance))

    def smooth_field(self, knots: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """Normal numbers on a grid of knots, drawn out smoothly: (n, 1, H, W)."""
        coarse = torch.from_numpy(self.generator.standard_normal((self.count, 1, *knots)).astype(np.float32))
        return nn.interpolate(coarse, shape, mode="bicubic", align_corners=False)

    def _spread(self, values: Tensor) -> Tensor:
        return values.view(self.count, *(1 for _ in range(self.axes)))
