"""The arrays that everybody trains on: real images, brought to the work's shape, made once and kept as one file.

Fashion-MNIST where Debian's package has put it, else the digits that come with scikit-learn. Rows of features are
always digits. Where a work needs more records than there are images, they are taken again, with a little noise.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.datasets import fashion_mnist
from shared_models.cards import KNOWN
from shared_models.plan_data import DataPlan
from simulations.benchmarks.engines.works import Work

_SEED = 1
_NOISE = 0.02  # of a pixel's range; what tells an image from its copies

Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


def made(work: Work, folder: Path) -> Path:
    """The work's file: `x`, (users * records, *shape), bytes of images or float32 of rows, and `y`, the labels.

    Args:
        work: whose.
        folder: where files are kept; a file that is there is not made again.

    Raises:
        UsageError: the copy of Fashion-MNIST on this machine is damaged.
    """
    shape = "x".join(map(str, work.shape))
    path = folder / f"{source(work)}-{work.users}x{work.records}-{shape}.npz"
    if path.is_file():
        return path
    x, y = _arrays(work)
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part.npz")
    np.savez(unfinished, x=x, y=y)
    unfinished.replace(path)  # nobody finds half a file
    return path


def source(work: Work) -> str:
    """Whose images they are: `fashion-mnist` or `digits`."""
    return "fashion-mnist" if len(work.shape) == 3 and fashion_mnist.DEBIAN.is_dir() else "digits"


def _arrays(work: Work) -> tuple[npt.NDArray[Any], Labels]:
    images, labels = _fashion() if source(work) == "fashion-mnist" else _digits()
    count, generator = work.users * work.records, np.random.default_rng(_SEED)
    # A new order for each time round, so that users differ.
    times = -(-count // len(images))
    rows = np.concatenate([generator.permutation(len(images)) for _ in range(times)])[:count]
    x, y = images[rows], labels[rows]
    again = slice(len(images), None)
    x[again] += generator.normal(scale=_NOISE, size=x[again].shape).astype(np.float32)
    if len(work.shape) == 1:
        return x.reshape(count, *work.shape), y
    return np.round(255 * _fitted(x, work.shape).clip(0, 1)).astype(np.uint8), y


def _fitted(images: Images, shape: tuple[int, ...]) -> Images:
    """(n, side, side) as (n, *shape): enlarged by a whole number, framed in zeros, each channel the same."""
    for axis in (1, 2):
        images = images.repeat(shape[axis] // images.shape[axis], axis=axis)
    rest = [(side - have) for side, have in zip(shape[1:], images.shape[1:], strict=True)]
    framed = np.pad(images, [(0, 0), *((one // 2, one - one // 2) for one in rest)])
    return framed[:, None].repeat(shape[0], axis=1)


def _fashion() -> tuple[Images, Labels]:
    """All training images (60000, 28, 28) in [0, 1]."""
    card = dataclasses.replace(KNOWN["fashion-mnist"], mean=0.0, std=1.0)
    train, _ = fashion_mnist.load(DataPlan(name="fashion-mnist", path=str(fashion_mnist.DEBIAN)), card)
    return train.x[:, 0].numpy(), train.y.numpy()


def _digits() -> tuple[Images, Labels]:
    """All digits (1797, 8, 8) in [0, 1]."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)
