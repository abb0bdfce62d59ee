"""The user's own images, FOLDER/CLASS/*.png or *.jpg: one folder for each class of the data card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records
from client.datasets.sources import data_path, did_you_mean
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.pictures import CHANNELS, PictureError, decode, pillow
from shared_models.plan_data import DataPlan

SUFFIXES: Final = (".png", ".jpg", ".jpeg")


def load(data: DataPlan, card: DataCard, *, leave_out: bool = False) -> Parts:
    """All images below `data.path`, x (n, channels, height, width); there is no test part.

    Pixels are converted to grey (1 channel) or RGB (3), scaled to [0, 1], then `(value - mean) / std`. A
    class without a folder has no images here, which is usual where an owner holds few classes. With `leave_out`, an
    image that the card doesn't describe is left out, each by itself, in place of an error.

    Raises:
        UsageError: Pillow is missing, a folder is not a class, an image is damaged or not of the card's size.
    """
    if len(card.input_shape) != 3 or card.input_shape[0] not in CHANNELS:
        raise UsageError(f"data.card.input_shape: images need [1 or 3, height, width], not {list(card.input_shape)}")
    files = list(image_files(data_path(data), card.classes, leave_out=leave_out))
    pixels = np.empty((len(files), *card.input_shape), dtype=np.uint8)
    numbers: list[int] = []
    if files:
        image = pillow("image-folder")
        for path, number in files:
            try:
                pixels[len(numbers)] = decode(image, path, card.input_shape, asked_by="data.card.input_shape")
            except PictureError:
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
