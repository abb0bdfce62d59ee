"""A map's matrices: derived from public images, applied to others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from shared_models.features import matrices as module
from shared_models.features.maps import feature_map, names
from shared_models.features.matrices import Matrices, derive

SHAPE = (1, 16, 16)


@pytest.fixture(scope="module", params=names())
def found(request: pytest.FixtureRequest) -> Iterator[Matrices]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PATCHES", 5000)
        patch.setattr(module, "_FILTER_IMAGES", 100)
        yield derive(feature_map(request.param), SHAPE, images=100)


def images(n: int, channels: int = 1) -> torch.Tensor:
    return torch.rand(n, channels, 16, 16, generator=torch.Generator().manual_seed(n))


def test_features_are_finite_and_as_many_as_the_map_says(found: Matrices) -> None:
    x = found.features(images(5))
    size = 81 * 16 + 2048 * len(found.filters)
    assert x.shape == (5, size)
    assert x.dtype == torch.float32
    assert bool(torch.isfinite(x).all())


def test_each_image_is_seen_by_itself_whatever_batch_it_is_in(found: Matrices) -> None:
    x = images(260)
    together = found.features(x)
    assert torch.allclose(together[200:203], found.features(x[200:203]), atol=1e-4)


def test_the_same_images_give_the_same_bits(found: Matrices) -> None:
    assert torch.equal(found.features(images(40)), found.features(images(40)))


def test_brightness_is_undone_and_bounded(found: Matrices) -> None:
    x = images(4)
    assert torch.allclose(found.features((x - 0.286) / 0.353, scale=0.353, shift=0.286), found.features(x), atol=2e-3)
    assert torch.equal(found.features(x * 3 - 1), found.features((x * 3 - 1).clamp(0, 1)))


def test_black_white_and_no_images_are_fine(found: Matrices) -> None:
    edge = torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)])
    assert bool(torch.isfinite(found.features(edge)).all())
    assert found.features(images(3)[:0]).shape == (0, len(found.mean))


def test_colours_are_turned_to_grey(found: Matrices) -> None:
    grey = images(3)
    assert torch.allclose(found.features(grey.expand(-1, 3, -1, -1)), found.features(grey), atol=2e-3)


def test_deriving_again_gives_the_same_matrices() -> None:
    once, again = (derive(feature_map("scattering"), SHAPE, images=100).tensors() for _ in range(2))
    for key, tensor in once.items():
        assert torch.allclose(again[key], tensor, atol=1e-5), key


def test_it_survives_a_file(found: Matrices) -> None:
    again = Matrices.of(found.tensors())
    assert torch.equal(again.features(images(2)), found.features(images(2)))
