"""The small convolutional network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_models.cnn import CnnConfig, build


def feature_shape(shape: tuple[int, int, int], config: CnnConfig) -> tuple[int, ...]:
    model = build(config, shape, 10)
    return tuple(model.features(torch.zeros(1, *shape)).shape[1:])


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (1, 64, 64)])
def test_the_default_has_about_26_thousand_parameters_whatever_the_size(shape: tuple[int, int, int]) -> None:
    assert sum(parameter.numel() for parameter in build(CnnConfig(), shape, 10).parameters()) == 25_906


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 8), (32, 4, 4)), ((1, 9, 8), (32, 5, 4)), ((1, 28, 28), (32, 7, 7)), ((3, 64, 64), (32, 16, 16))],
)
def test_convolutions_halve_the_map_but_never_below_four(
    shape: tuple[int, int, int], expected: tuple[int, ...]
) -> None:
    assert feature_shape(shape, CnnConfig()) == expected


def test_each_entry_of_channels_is_a_convolution_and_its_normalisation() -> None:
    model = build(CnnConfig(channels=(4, 8, 12), groups=2, hidden=5), (3, 32, 32), 6)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [(3, 4), (4, 8), (8, 12)]
    assert [(n.num_groups, n.num_channels) for n in norms] == [(2, 4), (2, 8), (2, 12)]
    assert [(m.in_features, m.out_features) for m in linears] == [(12 * 16, 5), (5, 6)]


def test_tanh_bounds_the_features_and_relu_does_not() -> None:
    images = 10 * torch.randn(4, 1, 8, 8)
    assert build(CnnConfig(activation="tanh"), (1, 8, 8), 10).features(images).abs().max() <= 1
    relu = build(CnnConfig(activation="relu"), (1, 8, 8), 10).features(images)
    assert relu.min() == 0
    assert relu.max() > 1


def test_brightness_and_contrast_hardly_matter() -> None:
    """GroupNorm follows the first convolution; away from the border an affine change of the image cancels."""
    model = build(CnnConfig(), (1, 64, 64), 10)
    image = torch.randn(1, 1, 64, 64)
    first = model.features[:2]
    with torch.no_grad():
        model.features[0].bias.zero_()
        model.features[0].padding = (0, 0)
        torch.testing.assert_close(first(7 * image), first(image), rtol=1e-3, atol=1e-4)
