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
        whiteners: of each block of features, those of scattering and those of patches of one size: float32 (b, b),
            symmetric; the sizes b add up to d.
        filters: of the patch features, one of each size of patches; none in a map without them.
    """

    mean: Tensor
    whiteners: tuple[Tensor, ...]
    filters: tuple[PatchFilters, ...]

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
                at = 0
                for raw, whitener_of in zip(_raw(part, self.filters), self.whiteners, strict=True):
                    block = slice(at, at + raw.shape[1])
                    found[start : start + _BATCH, block] = raw.sub_(self.mean[block]) @ whitener_of
                    at = block.stop
        return found

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, for a file."""
        found = {"mean": self.mean}
        found |= {f"whitener.{number}": one for number, one in enumerate(self.whiteners)}
        for number, one in enumerate(self.filters):
            found |= {f"filters.{number}.weights": one.weights, f"filters.{number}.offsets": one.offsets}
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Matrices:
        """From what `tensors` gave."""
        blocks = sum(name.startswith("whitener.") for name in tensors)
        filters = tuple(
            PatchFilters(weights=tensors[f"filters.{number}.weights"], offsets=tensors[f"filters.{number}.offsets"])
            for number in range(blocks - 1)
        )
        whiteners = tuple(tensors[f"whitener.{number}"] for number in range(blocks))
        return cls(mean=tensors["mean"], whiteners=whiteners, filters=filters)


def derive(chosen: FeatureMap, shape: tuple[int, ...], *, images: int = PUBLIC_IMAGES) -> Matrices:
    """Learn a map's matrices from public images: a minute or two for 28 x 28, and up to 2 GB of memory.

    Args:
        chosen: the map.
        shape: of one example.
        images: public images to learn from; another number than the map's own is for tests.

    Raises:
        UsageError: the map doesn't take such examples, or the public images aren't there.
    """
    sides, blocks = chosen.image_size(shape), chosen.blocks(shape)
    filters: tuple[PatchFilters, ...] = ()
    if chosen.patches:
        seen = torch.cat(list(public_images(min(images, _FILTER_IMAGES), sides, seed=SEED + 1, plain=False)))
        filters = tuple(
            learn_filters(seen[:, 0].numpy(), np.random.default_rng(SEED), side=side, patches=_PATCHES)
            for side in chosen.patches
        )
    moments = [Moments(size) for size in blocks]
    with torch.inference_mode():
        for part in public_images(images, sides, seed=SEED):
            raw = [_raw(batch, filters) for batch in torch.split(part, _BATCH)]
            for number, block in enumerate(moments):
                block.add(torch.cat([one[number] for one in raw]).numpy())
    mean = np.concatenate([block.mean() for block in moments]).astype(np.float32)
    whiteners = tuple(torch.from_numpy(whitener(block.covariance())) for block in moments)
    return Matrices(mean=torch.from_numpy(mean), whiteners=whiteners, filters=filters)


def _raw(images: Tensor, filters: tuple[PatchFilters, ...]) -> list[Tensor]:
    """Each block of features before whitening."""
    return [normalised(scattering(images)).flatten(1), *(patch_features(images, one) for one in filters)]


def _grey(images: Tensor) -> Tensor:
    if images.shape[1] == 1:
        return images
    return torch.einsum("nchw,c->nhw", images, torch.tensor(_GREY))[:, None]
