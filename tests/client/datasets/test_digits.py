"""scikit-learn's digits as a data set."""

import pytest
import torch

from client.datasets.registry import load
from security.errors import UsageError
from shared_models.plan_data import DataPlan

KEY = b"k" * 32


def test_all_digits_are_there_in_the_cards_range() -> None:
    loaded = load(DataPlan(), split_key=KEY)
    assert len(loaded.train) + len(loaded.test) == 1797
    assert loaded.train.x.shape[1:] == loaded.card.input_shape == (1, 8, 8)
    assert (loaded.train.x.min(), loaded.train.x.max()) == (-1, 1)  # pixels from 0 to 16, minus 8, over 8
    assert set(loaded.test.y.tolist()) == set(range(10))


def test_rule_10_about_a_fifth_is_held_out_the_same_on_every_load() -> None:
    first, again = (load(DataPlan(), split_key=KEY) for _ in range(2))
    assert torch.equal(first.test.x, again.test.x)
    assert abs(len(first.test) / 1797 - 0.2) < 5 * (0.16 / 1797) ** 0.5


def test_a_path_would_be_ignored_so_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.path"):
        load(DataPlan(path="/tmp/x"), split_key=KEY)
