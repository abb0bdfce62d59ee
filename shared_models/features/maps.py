"""The feature maps a plan may name, and what pins them.

A map is fixed by its recipe: its name, the size of the images, the constants of this package and the public images that
its matrices are learnt from. The digest of all that, its *source*, is what a plan pins; no machine's arithmetic enters
it. The matrices themselves are derived on each machine (`derive`), and may differ there in their last bits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from security.errors import UsageError, did_you_mean
from shared_models.features import patches, scattering, whitening

_RECIPE: Final = 3  # to be raised with any change that moves a feature
_MOST_PIXELS: Final = 1024  # the matrices grow with the square of it: 210 MB at 32 x 32
_LEAST_SIDE: Final = 16
PUBLIC_IMAGES: Final = 16_000
"""Public images that the whitening is learnt from."""

SEED: Final = 20240613
"""Seed of the public images; public, and of no meaning."""


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """A map that plans can name.

    Attributes:
        name: what a plan calls it.
        patches: sides of the patches whose features stand beside the scattering coefficients.
        summary: one line for people.
    """

    name: str
    patches: tuple[int, ...]
    summary: str

    def size(self, shape: tuple[int, ...]) -> int:
        """Features of one example.

        Args:
            shape: of the example, without the batch: (1 or 3, height, width).

        Raises:
            UsageError: the map doesn't take such examples.
        """
        return sum(self.blocks(shape))

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Features of one example in each block: of scattering, and of each size of patches.

        Raises:
            UsageError: as `size`.
        """
        height, width = self.image_size(shape)
        coefficients = scattering.MAPS * (height // scattering.SHRINKS) * (width // scattering.SHRINKS)
        return coefficients, *(patches.VALUES for _ in self.patches)

    def image_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the images.

        Raises:
            UsageError: as `size`.
        """
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(f"features.name = '{self.name}': takes images, grey or in colour; {_given(shape)}")
        height, width = shape[1:]
        if min(height, width) < _LEAST_SIDE or height % scattering.SHRINKS or width % scattering.SHRINKS:
            raise UsageError(
                f"features.name = '{self.name}': takes images with sides of {_LEAST_SIDE} or more that are multiples "
                f"of {scattering.SHRINKS}; {_given(shape)}"
            )
        if height * width > _MOST_PIXELS:
            raise UsageError(f"features.name = '{self.name}': takes at most {_MOST_PIXELS} pixels; {_given(shape)}")
        return height, width

    def source(self, shape: tuple[int, ...]) -> str:
        """SHA-256 over recipe and public images, in hexadecimal.

        Raises:
            UsageError: as `size`, or scikit-learn came without its images.
        """
        from shared_models.features.public_images import public_digest

        recipe = {
            "recipe": _RECIPE,
            "name": self.name,
            "size": self.image_size(shape),
            "images": PUBLIC_IMAGES,
            "seed": SEED,
            "patches": self.patches,
            "whitening": (whitening.FLOOR, whitening.POWER),
            "public": public_digest(),
        }
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def _given(shape: tuple[int, ...]) -> str:
    return f"the data's examples have shape {shape}"


_MAPS: Final = {
    found.name: found
    for found in (
        FeatureMap(name="scattering", patches=(), summary="scattering coefficients, whitened"),
        FeatureMap(
            name="scattering-patches", patches=(5, 8, 12), summary="scattering and patch features, whitened each"
        ),
    )
}


def names() -> tuple[str, ...]:
    """The known maps, sorted."""
    return tuple(sorted(_MAPS))


def feature_map(name: str) -> FeatureMap:
    """The map of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _MAPS:
        raise UsageError(
            f"features.name = {name!r}: unknown feature map; {did_you_mean(name, names())}allowed: {', '.join(names())}"
        )
    return _MAPS[name]
