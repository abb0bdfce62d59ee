"""Random numbers for many drawings at once."""

from __future__ import annotations

import numpy as np
import torch

from shared_models.features.draws import Draws


def draws(count: int = 20_000, axes: int = 2) -> Draws:
    return Draws(count, np.random.default_rng(1), axes=axes)


def test_each_thing_has_a_number_of_its_own_with_axes_to_spread_over_a_picture() -> None:
    found = draws(5, axes=3).uniform(2, 3)
    assert found.shape == (5, 1, 1, 1)
    assert found.dtype == torch.float32
    assert len(found.unique()) == 5
    assert bool(((found >= 2) & (found < 3)).all())


def test_coins_fall_as_often_as_asked() -> None:
    """Within five standard deviations: a false alarm in 1.7 million."""
    for chance in (0.0, 0.3, 1.0):
        mean = float(draws().coin(chance).float().mean())
        assert abs(mean - chance) <= 5 * (chance * (1 - chance) / 20_000) ** 0.5


def test_a_field_is_smooth_between_its_knots() -> None:
    field = draws(50, axes=3).smooth_field((4, 4), (32, 32))
    assert field.shape == (50, 1, 32, 32)
    assert float((field[..., 1:] - field[..., :-1]).std()) < 0.25 * float(field.std())


def test_every_call_draws_anew_and_the_generator_fixes_all() -> None:
    once, again = draws(8), draws(8)
    assert torch.equal(once.uniform(0, 1), again.uniform(0, 1))
    assert not torch.equal(once.uniform(0, 1), draws(8).uniform(0, 1))
