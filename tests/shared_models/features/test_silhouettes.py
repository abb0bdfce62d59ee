"""Silhouettes of made-up things."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from shared_models.features.silhouettes import silhouettes


@pytest.fixture(scope="module", params=[(28, 28), (16, 32)])
def drawn(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return silhouettes(500, request.param, np.random.default_rng(1))


def test_they_are_masks_with_grey_only_at_the_edges(drawn: tuple[Tensor, Tensor]) -> None:
    for mask in drawn:
        assert mask.shape[:2] == (500, 1)
        assert float(mask.min()) >= 0
        assert float(mask.max()) <= 1
        assert float(((mask > 0.05) & (mask < 0.95)).float().mean()) < 0.25


def test_every_one_shows_something_and_nearly_every_one_leaves_some_black(drawn: tuple[Tensor, Tensor]) -> None:
    covered = drawn[0].mean(dim=(1, 2, 3))
    assert float(covered.min()) > 0.01
    assert float((covered < 0.95).float().mean()) > 0.95


def test_a_thing_fills_the_picture_along_its_longer_side(drawn: tuple[Tensor, Tensor]) -> None:
    whole = drawn[0][:, 0]
    seen = [
        (there := (whole > 0.1).any(dim=axis)).float().argmax(1) + there.flip(1).float().argmax(1) for axis in (1, 2)
    ]
    black = torch.minimum(seen[0] / whole.shape[2], seen[1] / whole.shape[1])  # share of it beside the thing
    assert float((black < 0.2).float().mean()) > 0.95


def test_a_part_apart_lies_within_the_whole_and_not_every_thing_has_one(drawn: tuple[Tensor, Tensor]) -> None:
    whole, apart = drawn
    assert bool((apart <= whole + 1e-5).all())
    with_parts = float((apart.amax(dim=(1, 2, 3)) > 0.5).float().mean())
    assert 0.2 < with_parts < 0.7


def test_no_two_are_alike_and_the_generator_fixes_all() -> None:
    once, again = (silhouettes(40, (16, 16), np.random.default_rng(7))[0] for _ in range(2))
    assert torch.equal(once, again)
    assert len(torch.unique(once.flatten(1), dim=0)) == 40
