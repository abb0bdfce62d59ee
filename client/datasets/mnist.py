"""MNIST, 10,000 of its images of 28 x 28 (LeCun, Cortes and Burges 1998), as an npm package ships them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records
from client.datasets.sources import refuse_path
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.plan_data import DataPlan


def load(data: DataPlan, card: DataCard) -> Parts:
    """All images, x (10000, 1, 28, 28), normalised by the card; there is no test part.

    Raises:
        UsageError: it isn't fetched yet, or damaged.
    """
    refuse_path(data)
    files = fetched("mnist")
    images = [_images(files[f"{digit}.json"]) for digit in range(10)]
    labels = np.repeat(np.arange(10), [len(found) for found in images])
    return Records(x=normalise(np.concatenate(images), card), y=torch.from_numpy(labels)), None


@cache
def _images(path: Path) -> npt.NDArray[np.float32]:
    values: list[float] = json.loads(path.read_bytes())["data"]  # from 0 to 1, one image after the other
    return np.array(values, dtype=np.float32).reshape(-1, 1, 28, 28)
