"""Patch features."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shared_models.features.patches import FILTERS, VALUES, PatchFilters, learn_filters, patch_features

SIDE = 6


def images(seed: int, n: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).random((n, 20, 20), dtype=np.float32)


@pytest.fixture(scope="module")
def filters() -> PatchFilters:
    return learn_filters(images(1), np.random.default_rng(2), side=SIDE, patches=5000)


@pytest.mark.parametrize("side", [16, 28, 32])
def test_an_image_has_2048_features_whatever_its_size(filters: PatchFilters, side: int) -> None:
    found = patch_features(torch.rand(3, 1, side, side), filters)
    assert found.shape == (3, VALUES)
    assert torch.allclose(found.mean(dim=1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(found.var(dim=1, correction=0), torch.ones(3), atol=2e-2)


def test_they_equal_the_definition_patch_by_patch(filters: PatchFilters) -> None:
    x = images(3, n=1)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), (SIDE, SIDE))
    patches = windows.reshape(-1, SIDE * SIDE)
    plain = patches - patches.mean(axis=1, keepdims=True)
    plain /= np.sqrt(patches.var(axis=1, keepdims=True) + 0.01)
    weights = filters.weights.numpy().reshape(FILTERS, -1).astype(np.float64)
    responses = (plain @ weights.T - filters.offsets.numpy()).T.reshape(FILTERS, 15, 15)
    both = np.concatenate([np.maximum(responses - 0.5, 0), np.maximum(-responses - 0.5, 0)])
    pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(both)[None], 4).flatten().numpy()
    expected = np.sqrt(pooled)
    expected = (expected - expected.mean()) / expected.std()
    assert np.allclose(patch_features(torch.from_numpy(x)[:, None], filters)[0].numpy(), expected, atol=5e-3)


def test_a_flat_image_shows_next_to_no_pattern_and_is_finite(filters: PatchFilters) -> None:
    found = patch_features(torch.full((1, 1, 28, 28), 0.3), filters)
    assert bool(torch.isfinite(found).all())


def test_brightness_does_not_matter(filters: PatchFilters) -> None:
    x = torch.from_numpy(images(4, n=3))[:, None]
    bright = patch_features(x * 0.5 + 0.5, filters)
    assert torch.allclose(bright, patch_features(x * 0.5, filters), atol=1e-2)


def test_whitened_responses_have_a_like_variance() -> None:
    smooth = np.cumsum(np.cumsum(images(5) - 0.5, axis=1), axis=2).astype(np.float32)
    smooth /= np.abs(smooth).max()
    found = learn_filters(smooth * 20, np.random.default_rng(0), side=SIDE, patches=20000)
    assert found.weights.shape == (FILTERS, 1, SIDE, SIDE)
    assert bool(torch.isfinite(found.weights).all())


def test_the_same_images_and_seed_give_the_same_filters() -> None:
    once, again = (learn_filters(images(6), np.random.default_rng(7), side=SIDE, patches=3000) for _ in range(2))
    assert torch.equal(once.weights, again.weights)
    assert torch.equal(once.offsets, again.offsets)
