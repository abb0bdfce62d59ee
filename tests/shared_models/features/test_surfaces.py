"""Surfaces of made-up things."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shared_models.features.surfaces import painted

N = 300


def disc() -> Tensor:
    line = torch.linspace(-1, 1, 28)
    return (line[:, None] ** 2 + line[None] ** 2 < 0.6).float().expand(N, 1, 28, 28)


def textures(strength: float) -> Tensor:
    return 0.5 + strength * torch.rand(N, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def paint(texture: Tensor, apart: Tensor | None = None) -> Tensor:
    whole = disc()
    return painted(texture, whole, torch.zeros_like(whole) if apart is None else apart, np.random.default_rng(2))


def test_it_is_black_outside_and_never_black_inside() -> None:
    found = paint(textures(0.5))
    inside = disc() > 0
    assert float(found[~inside].abs().max()) == 0
    assert float(found[inside].min()) >= 0.02 - 1e-6
    assert float(found.max()) <= 1


def test_brightness_differs_from_thing_to_thing_more_than_within_one() -> None:
    found = paint(textures(0.5)).flatten(1)[:, disc()[0].flatten() > 0]
    assert float(found.mean(dim=1).std()) > float(found.std(dim=1).median())


def test_what_the_photograph_shows_is_seen_and_how_bright_it_was_is_not() -> None:
    texture = textures(0.5)
    assert not torch.equal(paint(texture), paint(texture.flip(0)))
    assert torch.allclose(paint(texture), paint(texture * 0.5 + 0.2), atol=0.05)


def test_parts_apart_are_of_another_brightness_in_some() -> None:
    half = disc() * (torch.arange(28) < 14)
    changed = (paint(textures(0.5), half) - paint(textures(0.5))).abs()
    assert float(changed[..., 14:].max()) == 0
    assert 0.2 < float((changed.amax(dim=(1, 2, 3)) > 0.02).float().mean()) < 0.6
