"""Public images that the matrices of feature maps are learnt from: nobody's data, and on every machine already.

Made-up things, each alone on black and as large as the picture: silhouettes drawn by formulas, with surfaces whose
textures are cut from the two photographs that scikit-learn ships (`load_sample_images`, CC BY). In one of ten images
the silhouette stands by itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from security.errors import UsageError
from shared_models.features.silhouettes import silhouettes
from shared_models.features.surfaces import painted

_PHOTOGRAPHS: Final = ("china.jpg", "flower.jpg")
_SHRINKS: Final = (1, 2, 4)  # how coarsely a photograph is seen
_PART: Final = 1000  # images made at once
_PLAIN: Final = 10  # one of so many is without a texture

Grey = npt.NDArray[np.float32]


def public_images(count: int, shape: tuple[int, int], *, seed: int, plain: bool = True) -> Iterator[Tensor]:
    """Images in parts (n, 1, H, W), float32 in [0, 1]; the same arguments give the same images.

    Args:
        count: of images.
        shape: height and width.
        seed: public.
        plain: whether one of ten is a silhouette by itself. They help whitening; patterns learnt from them would all
            be edges.

    Raises:
        UsageError: Pillow isn't installed, or scikit-learn came without its images.
    """
    generator = np.random.default_rng(seed)
    photographs = _pyramid()
    for start in range(0, count, _PART):
        n = min(_PART, count - start)
        textures = _textures(photographs, n, shape, generator)
        whole, apart = silhouettes(n, shape, generator)
        found = painted(textures, whole, apart, generator)
        if plain:
            found[: n // _PLAIN] = whole[: n // _PLAIN]
        yield found


def public_digest() -> str:
    """SHA-256 of what the images are made from, in hexadecimal: of files, so that no machine's decoder matters.

    Raises:
        UsageError: as `public_images`.
    """
    found = hashlib.sha256()
    for path in _photograph_files():
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _textures(photographs: list[Grey], n: int, shape: tuple[int, int], generator: np.random.Generator) -> Tensor:
    """Crops (n, 1, H, W), some mirrored, in all strengths of contrast and brightness."""
    which = generator.integers(len(photographs), size=n)
    found = np.empty((n, *shape), dtype=np.float32)
    for number, photograph in enumerate(photographs):
        rows = np.flatnonzero(which == number)
        windows = np.lib.stride_tricks.sliding_window_view(photograph, shape)
        places = tuple(generator.integers(size, size=len(rows)) for size in windows.shape[:2])
        found[rows] = windows[places]
    mirrored = generator.random(n) < 0.5
    found[mirrored] = found[mirrored, :, ::-1]
    low, high = found.min(axis=(1, 2), keepdims=True), found.max(axis=(1, 2), keepdims=True)
    found = (found - low) / np.maximum(high - low, 1e-3)
    contrast = generator.uniform(0.1, 1, (n, 1, 1)).astype(np.float32)
    floor = (generator.random((n, 1, 1)) * (1 - contrast)).astype(np.float32)
    return torch.from_numpy(floor + contrast * found)[:, None]


def _pyramid() -> list[Grey]:
    """The photographs in grey, each in several sizes."""
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("[features]: the public images need Pillow; pip install 'veil-fl[images]'") from error
    found = []
    for path in _photograph_files():
        with Image.open(path) as image:
            colour = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
        grey = colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        for shrink in _SHRINKS:
            height, width = (size // shrink * shrink for size in grey.shape)
            cells = grey[:height, :width].reshape(height // shrink, shrink, width // shrink, shrink)
            found.append(np.ascontiguousarray(cells.mean(axis=(1, 3)), dtype=np.float32))
    return found


def _photograph_files() -> list[Path]:
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "images"
    files = [folder / name for name in _PHOTOGRAPHS]
    missing = [path for path in files if not path.is_file()]
    if missing:
        raise UsageError(f"{missing[0]}: is missing; reinstall scikit-learn, which ships it")
    return files
