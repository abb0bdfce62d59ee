"""One picture file of an owner's or an asker's own, as pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt

from security.errors import UsageError

_FORMATS: Final = ("PNG", "JPEG")  # decoders of rarer formats stay out of reach of what lies in a folder
_MODES: Final = {1: "L", 3: "RGB"}

CHANNELS: Final = tuple(_MODES)
"""Numbers of channels that a picture is read as: grey, or red, green and blue."""


class PictureError(UsageError):
    """A picture that can't be used.

    Attributes:
        kind: "size", "depth" (more than 8 bits a channel) or "damaged".
        text: what is wrong, without the path.
    """

    def __init__(self, path: Path, kind: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.kind = kind
        self.text = text


def decode(image: ModuleType, path: Path, shape: tuple[int, ...], *, asked_by: str) -> npt.NDArray[np.uint8]:
    """One picture as (channels, height, width).

    Args:
        image: Pillow's (`pillow`).
        path: of a PNG or JPEG.
        shape: (channels, height, width), channels one of `CHANNELS`.
        asked_by: who asks for that size, for the error.

    Raises:
        PictureError: it has another size or more than 8 bits a channel, or is damaged.
    """
    channels, height, width = shape
    try:
        with _strictly(image), image.open(path, formats=_FORMATS) as picture:
            # The header tells the size; what is too large is refused before a pixel of it is unpacked.
            if picture.size != (width, height):
                raise PictureError(
                    path,
                    "size",
                    f"is {picture.size[0]} x {picture.size[1]} pixels (width x height), "
                    f"{asked_by} asks for {width} x {height}; resize it",
                )
            # Converting more than 8 bits a channel would clip instead of scale.
            if picture.mode.startswith(("I", "F")):
                raise PictureError(path, "depth", "has more than 8 bits a channel; save it with 8")
            values = np.asarray(picture.convert(_MODES[channels]), dtype=np.uint8)
    except (
        OSError,
        SyntaxError,
        ValueError,
        image.DecompressionBombError,
        image.DecompressionBombWarning,
    ) as error:
        raise PictureError(
            path, "damaged", "is damaged, too large or not a PNG or JPEG image; mend or remove it"
        ) from error
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


@contextmanager
def _strictly(image: ModuleType) -> Iterator[None]:
    """A picture that is far too large is an error; and so is a cut one, which Pillow fills up if any library in this
    process asked it to, as WeasyPrint does."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def pillow(what: str) -> ModuleType:
    """Pillow's `Image`.

    Args:
        what: needs it, for the error.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError(f"{what}: needs Pillow; pip install 'veil-fl[images]'") from error
    return Image
