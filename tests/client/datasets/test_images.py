"""Pixels are normalised by public constants of the card, never by the data's own mean."""

import numpy as np
import pytest
import torch

from client.datasets.images import normalise
from shared_models.cards import DataCard

CARD = DataCard(name="npz", input_shape=(1, 1, 3), classes=("a", "b"), mean=0.5, std=0.25)


def test_bytes_are_scaled_to_one_first() -> None:
    x = normalise(np.array([[[[0, 51, 255]]]], dtype=np.uint8), CARD)
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == pytest.approx([-2.0, -1.2, 2.0])


def test_other_numbers_are_taken_as_they_are() -> None:
    x = normalise(np.array([[[[0.0, 0.5, 2.0]]]]), CARD)
    assert x.flatten().tolist() == pytest.approx([-2.0, 0.0, 6.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_was_passed_in_is_left_alone(dtype: type) -> None:
    values = np.full((1, 1, 1, 3), 7, dtype=dtype)
    normalise(values, CARD)
    assert (values == 7).all()
