"""The matrices of a feature map: derived from public images, and applied to images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from shared_models.features.maps import PUBLIC_IMAGES, SEED, FeatureMap
from shared_models.features.normalise import normalised
from shared_models.features.patches import PatchFilters, learn_filters, patch_features
from shared_models.features.public_images import public_images
from shared_models.features.scattering import scattering
from shared_models.features.whitening import Moments, whitener

_FILTER_IMAGES: Final = 4000
_PATCHES: Final = 200_000
_BATCH: Final = 125  # images at once: what the convolutions hold then fits into a processor's cache
_GREY: Final = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrices:
    """A feature map at work.

    Attributes:
        mean: float32 (d,), of the public images' features.
        whitener: float32 (d, d), symmetric.
        filters: of the patch features; None in a map without them.
    """

    mean: Tensor
    whitener: Tensor
    filters: PatchFilters | None

    def features(self, images: Tensor, *, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Features (n, d), float32, of images (n, 1 or 3, H, W), one by one and in bounded memory.

        Args:
            images: float32; colours are turned to grey.
            scale, shift: `images * scale + shift` is their brightness; values outside [0, 1] count as 0 or 1.
        """
        found = torch.empty(len(images), len(self.mean))
        with torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                part = _grey(images[start : start + _BATCH]).mul(scale).add_(shift).clamp_(0, 1)
                torch.mm(_raw(part, self.filters).sub_(self.mean), self.whitener, out=found[start : start + _BATCH])
        return found

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        found = {"mean": self.mean, "whitener": self.whitener}
        if self.filters is not None:
            found |= {"filters.weights": self.filters.weights, "filters.offsets": self.filters.offsets}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Matrices:
        """From what `tensors` gave."""
        filters = None
        if "filters.weights" in tensors:
            filters = PatchFilters(weights=tensors["filters.weights"], offsets=tensors["filters.offsets"])
        return cls(mean=tensors["mean"], whitener=tensors["whitener"], filters=filters)


def derive(chosen: FeatureMap, shape: tuple[int, ...], *, images: int = PUBLIC_IMAGES) -> Matrices:
    """Learn a map's matrices from public images: a minute or so for 28 x 28, and up to 2 GB of memory.

    Args:
        chosen: the map.
        shape: of one example.
        images: public images to learn from; another number than the map's own is for tests.

    Raises:
        UsageError: the map doesn't take such examples, or the public images aren't there.
    """
    size, sides = chosen.size(shape), chosen.image_size(shape)
    filters = None
    if chosen.with_patches:
        seen = torch.cat(list(public_images(min(images, _FILTER_IMAGES), sides, seed=SEED + 1, plain=False)))
        filters = learn_filters(seen[:, 0].numpy(), np.random.default_rng(SEED), patches=_PATCHES)
    moments = Moments(size)
    with torch.inference_mode():
        for part in public_images(images, sides, seed=SEED):
            raw = torch.cat([_raw(batch, filters) for batch in torch.split(part, _BATCH)])
            moments.add(raw.numpy())
    mean = moments.mean().astype(np.float32)
    covariance = moments.covariance()
    matrix = whitener(covariance)
    return Matrices(mean=torch.from_numpy(mean), whitener=torch.from_numpy(matrix), filters=filters)


def _raw(images: Tensor, filters: PatchFilters | None) -> Tensor:
    """Features before whitening."""
    found = normalised(scattering(images)).flatten(1)
    return found if filters is None else torch.cat([found, patch_features(images, filters)], dim=1)


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, torch.tensor(_GREY))[:, None]
