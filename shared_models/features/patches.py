"""Patch features: how much of each of 64 patterns of one size there is in each sixteenth of an image.

Source: Coates, Lee & Ng 2011, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning": patches are
brought to equal brightness and contrast, whitened, and compared with patterns that are whitened patches themselves;
here those of public images. Both signs of a response count apart (Coates & Ng 2012), beyond a threshold; each map is
averaged over a grid of 4 x 4 cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as nn

FILTERS = 64
"""Patterns of one size; each gives two maps."""

VALUES = 2 * FILTERS * 4 * 4
"""Features of an image by patterns of one size, whatever the image's size."""

_THRESHOLD = 0.5
_CONTRAST_FLOOR = 0.01  # added to a patch's variance: flat patches stay near zero
_WHITENING_FLOOR = 0.1  # added to the eigenvalues of patches, a part of their mean
_ROUNDS = 10


@dataclass(frozen=True, kw_only=True)
class PatchFilters:
    """What was learnt from public images.

    Attributes:
        weights: float32 (64, 1, k, k), what a patch of equal brightness and contrast is multiplied by.
        offsets: float32 (64,), what is then taken away.
    """

    weights: Tensor
    offsets: Tensor


def patch_features(images: Tensor, filters: PatchFilters) -> Tensor:
    """Features (n, 2048) of images (n, 1, H, W): square roots of mean responses, with zero mean and unit variance over
    each image, so that they weigh as much as normalised scattering coefficients.

    Args:
        images: float32, sides of at least k + 3.
        filters: as `learn_filters` gives them.
    """
    side = filters.weights.shape[-1]
    mean = nn.avg_pool2d(images, side, stride=1)
    variance = (nn.avg_pool2d(images * images, side, stride=1) - mean * mean).clamp_(min=0)
    total = filters.weights.sum(dim=(1, 2, 3))[:, None, None]
    found = nn.conv2d(images, filters.weights).sub_(mean * total)
    found = found.div_((variance + _CONTRAST_FLOOR).sqrt_()).sub_(filters.offsets[:, None, None])
    # A cell's mean of relu(r - t) and of relu(-r - t).
    both = torch.cat([found.sub(_THRESHOLD).relu_(), found.neg_().sub_(_THRESHOLD).relu_()], dim=1)
    pooled = nn.adaptive_avg_pool2d(both, 4).sqrt_()
    return nn.group_norm(pooled, 1).flatten(1)


def learn_filters(
    images: npt.NDArray[np.float32], generator: np.random.Generator, *, side: int, patches: int
) -> PatchFilters:
    """Patterns of public images: whitened patches, gathered round 64 directions (spherical k-means).

    Args:
        images: (n, H, W).
        generator: which patches are looked at.
        side: k, of a patch.
        patches: how many.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (side, side), axis=(1, 2))
    places = tuple(generator.integers(size, size=patches) for size in windows.shape[:3])
    drawn = windows[places].reshape(patches, side * side).astype(np.float64)
    drawn -= drawn.mean(axis=1, keepdims=True)
    drawn = drawn[drawn.var(axis=1) > _CONTRAST_FLOOR / 4]  # flat ones show no pattern
    drawn /= np.sqrt(drawn.var(axis=1, keepdims=True) + _CONTRAST_FLOOR)
    centre = drawn.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(drawn, rowvar=False))
    whitener = (vectors * (values + _WHITENING_FLOOR * values.mean()) ** -0.5) @ vectors.T
    white = (drawn - centre) @ whitener
    directions = _gathered(white, generator)
    weights = directions @ whitener
    return PatchFilters(
        weights=torch.from_numpy(weights.astype(np.float32).reshape(FILTERS, 1, side, side)),
        offsets=torch.from_numpy((weights @ centre).astype(np.float32)),
    )


def _gathered(white: npt.NDArray[np.float64], generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Unit vectors (64, k k) about which the patches gather, by the sign-free angle between them."""
    found = _unit(white[generator.choice(len(white), FILTERS, replace=False)])
    for _ in range(_ROUNDS):
        responses = white @ found.T
        nearest = np.abs(responses).argmax(axis=1)
        kept = np.zeros_like(responses)
        rows = np.arange(len(white))
        kept[rows, nearest] = responses[rows, nearest]
        found = _unit(kept.T @ white + found)
    return found


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
