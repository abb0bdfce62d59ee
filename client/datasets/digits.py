"""Handwritten digits, as they come with scikit-learn: 1797 images of 8 x 8, pixels from 0 to 16 (UCI)."""

from __future__ import annotations

import torch

from client.datasets.images import normalise
from client.datasets.records import Parts, Records
from client.datasets.sources import refuse_path
from shared_models.cards import DataCard
from shared_models.plan_data import DataPlan


def load(data: DataPlan, card: DataCard) -> Parts:
    """All digits, x (1797, 1, 8, 8) in [-1, 1]; there is no test part."""
    refuse_path(data)
    from sklearn.datasets import load_digits

    digits = load_digits()
    return Records(x=normalise(digits.images[:, None], card), y=torch.from_numpy(digits.target)), None
