"""The user's own images, FOLDER/CLASS/*.png or *.jpg: one folder for each class of the data card."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records
from client.datasets.sources import data_path, did_you_mean
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan

SUFFIXES: Final = (".png", ".jpg", ".jpeg")
_FORMATS: Final = ("PNG", "JPEG")  # decoders of rarer formats stay out of reach of what lies in the folder
_MODES: Final = {1: "L", 3: "RGB"}


class ImageError(UsageError):
    """An image that can't be used.

    Attributes:
        kind: "size", "depth" (more than 8 bits a channel) or "damaged".
        text: what is wrong, without the path.
    """

    def __init__(self, path: Path, kind: str, text: str) -> None:
        super().__init__(f"{path}: {text}")
        self.kind = kind
        self.text = text


def load(data: DataPlan, card: DataCard, *, leave_out: bool = False) -> Parts:
    """All images below `data.path`, x (n, channels, height, width); there is no test part.

    Pixels are converted to grey (1 channel) or RGB (3), scaled to [0, 1], then `(value - mean) / std`. A
    class without a folder has no images here, which is usual where an owner holds few classes. With `leave_out`, an
    image that the card doesn't describe is left out, each by itself, in place of an error.

    Raises:
        UsageError: Pillow is missing, a folder is not a class, an image is damaged or not of the card's size.
    """
    if len(card.input_shape) != 3 or card.input_shape[0] not in _MODES:
        raise UsageError(f"data.card.input_shape: images need [1 or 3, height, width], not {list(card.input_shape)}")
    files = list(image_files(data_path(data), card.classes, leave_out=leave_out))
    pixels = np.empty((len(files), *card.input_shape), dtype=np.uint8)
    numbers: list[int] = []
    if files:
        image = pillow()
        with warnings.catch_warnings():
            warnings.simplefilter("error", image.DecompressionBombWarning)
            for path, number in files:
                try:
                    pixels[len(numbers)] = decode(image, path, card.input_shape)
                except UsageError:
                    if not leave_out:
                        raise
                    continue
                numbers.append(number)
    labels, pixels = torch.tensor(numbers, dtype=torch.int64), pixels[: len(numbers)]
    return Records(x=normalise(pixels, card), y=labels), None


def image_files(root: Path, classes: tuple[str, ...], *, leave_out: bool = False) -> Iterator[tuple[Path, int]]:
    """Every image below a folder with the number of its class.

    Raises:
        UsageError: a folder is not a class, or none is; with `leave_out` such folders are passed over.
    """
    for number, folder in _class_folders(root, classes, leave_out=leave_out).items():
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                yield path, number


def _class_folders(root: Path, classes: tuple[str, ...], *, leave_out: bool) -> dict[int, Path]:
    """The folder of each class number that has one."""
    if not root.is_dir():
        raise UsageError(f"data.path: {root} is not a folder; give the folder that holds one folder for each class")
    folders = {}
    for folder in sorted(root.iterdir()):
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        if folder.name not in classes and leave_out:
            continue
        if folder.name not in classes:
            raise UsageError(
                f"data.path: {folder} is not one of data.card.classes{did_you_mean(folder.name, classes)}; "
                f"rename or remove the folder, or add the class"
            )
        folders[classes.index(folder.name)] = folder
    if not folders and not leave_out:
        raise UsageError(f"data.path: {root} has no folder named like a class ({', '.join(classes)})")
    return dict(sorted(folders.items()))


def decode(image: ModuleType, path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """One image as (channels, height, width)."""
    channels, height, width = shape
    try:
        with _whole_images_only(), image.open(path, formats=_FORMATS) as picture:
            # The header tells the size; what is too large is refused before a pixel of it is unpacked.
            if picture.size != (width, height):
                raise ImageError(
                    path,
                    "size",
                    f"is {picture.size[0]} x {picture.size[1]} pixels (width x height), "
                    f"data.card.input_shape asks for {width} x {height}; resize it",
                )
            # Converting more than 8 bits a channel would clip instead of scale.
            if picture.mode.startswith(("I", "F")):
                raise ImageError(path, "depth", "has more than 8 bits a channel; save it with 8")
            values = np.asarray(picture.convert(_MODES[channels]), dtype=np.uint8)
    except (
        OSError,
        SyntaxError,
        ValueError,
        image.DecompressionBombError,
        image.DecompressionBombWarning,
    ) as error:
        raise ImageError(
            path, "damaged", "is damaged, too large or not a PNG or JPEG image; mend or remove it"
        ) from error
    return values[None] if channels == 1 else values.transpose(2, 0, 1)


@contextmanager
def _whole_images_only() -> Iterator[None]:
    """Pillow fills up what a cut image lacks if any library in this process asked it to, as WeasyPrint does."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("image-folder: needs Pillow; pip install 'veil-fl[images]'") from error
    return Image
