"""Fashion-MNIST: 60,000 + 10,000 images of 28 x 28 (Xiao, Rasul, Vollgraf 2017, arXiv 1708.07747), MIT.

Read from the folder the plan names, else from Debian's package `dataset-fashion-mnist`, else from the Hugging
Face hub. Files are in the idx format of MNIST (LeCun et al. 1998): a big-endian magic number, the sizes, then
the bytes.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records
from client.datasets.sources import data_path
from security.errors import UsageError
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan

DEBIAN: Final = Path("/usr/share/datasets/fashion-mnist")
HUB: Final = "zalando-datasets/fashion_mnist"
_GET_IT: Final = "apt-get install dataset-fashion-mnist, or give a folder with its idx files: --set data.path=DIR"

Pixels = npt.NDArray[np.uint8]
Part = tuple[Pixels, Pixels]  # images (n, 28, 28), labels (n,)


def load(data: DataPlan, card: DataCard) -> Parts:
    """Training records x (60000, 1, 28, 28) and the official test part (10000), normalised by the card.

    Raises:
        UsageError: a file is missing, cut short or not what its name says; or there is no copy anywhere.
    """
    if data.path is not None or DEBIAN.is_dir():
        folder = DEBIAN if data.path is None else data_path(data)
        train, test = _from_folder(folder)
    else:
        train, test = _from_hub()
    return _records(train, card), _records(test, card)


def _records(part: Part, card: DataCard) -> Records:
    images, labels = part
    return Records(x=normalise(images[:, None], card), y=torch.from_numpy(labels.astype(np.int64)))


@cache  # the bytes of both parts, 55 MB, parsed once per process
def _from_folder(folder: Path) -> tuple[Part, Part]:
    return _from_files(folder, "train"), _from_files(folder, "t10k")


def _from_files(folder: Path, prefix: str) -> Part:
    images_path, labels_path = (folder / f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1"))
    images, labels = _read_idx(images_path, dimensions=3), _read_idx(labels_path, dimensions=1)
    if images.shape[1:] != (28, 28):
        raise UsageError(f"{images_path}: holds images of {images.shape[1]} x {images.shape[2]}, not 28 x 28")
    if len(images) != len(labels):
        raise UsageError(f"{labels_path}: holds {len(labels)} labels for {len(images)} images; get both files anew")
    if labels.max(initial=0) > 9:
        raise UsageError(f"{labels_path}: holds labels above 9; get the file anew ({_GET_IT})")
    return images, labels


def _read_idx(path: Path, *, dimensions: int) -> Pixels:
    """The bytes of one idx file, in the shape its header says."""
    try:
        with gzip.open(path) as file:
            content = file.read()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: is missing; {_GET_IT}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"{path}: is cut short or not a gzip file; get it anew ({_GET_IT})") from error
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    start = 4 * (1 + dimensions)
    unsigned_bytes = 0x0800  # element type, in the magic number's third byte; the fourth counts dimensions
    if len(content) < start or int.from_bytes(content[:4]) != unsigned_bytes + dimensions:
        raise UsageError(f"{path}: is not an idx file of bytes with {dimensions} dimensions; get it anew ({_GET_IT})")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UsageError(
            f"{path}: holds {len(content) - start} bytes of data, its header says {math.prod(shape)}; "
            f"get it anew ({_GET_IT})"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


@cache
def _from_hub() -> tuple[Part, Part]:
    try:
        from datasets import load_dataset

        sets = load_dataset(HUB)
        train, test = (
            (
                np.stack([np.asarray(image, dtype=np.uint8) for image in sets[part]["image"]]),
                np.asarray(sets[part]["label"], dtype=np.uint8),
            )
            for part in ("train", "test")
        )
    # Whatever goes wrong on the way (extra not installed, offline, proxy, hub down), the remedy is the same.
    except Exception as error:
        raise UsageError(
            f"fashion-mnist: there is no copy in {DEBIAN} and the Hugging Face hub did not give one "
            f"({type(error).__name__}); {_GET_IT}"
        ) from error
    return train, test
