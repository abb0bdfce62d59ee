"""Scattering coefficients of one image brought to a common scale, by that image alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as nn

_FLOOR = 0.01
_GROUPS = 27  # of three maps each


def normalised(coefficients: Tensor) -> Tensor:
    """Logarithm, then zero mean and unit variance over each group of three maps (Wu & He 2018, arXiv 1803.08494).

    It is GroupNorm without weights (as Tramèr & Boneh 2021, arXiv 2011.11660, use it, before the logarithm was added).

    Args:
        coefficients: (n, 81, h, w), as `scattering` gives them; those below zero count as zero.
    """
    return nn.group_norm(coefficients.clamp(min=0).add_(_FLOOR).log_(), _GROUPS)
