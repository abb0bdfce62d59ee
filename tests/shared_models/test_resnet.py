"""The residual network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_models.resnet import ResidualBlock, ResnetConfig, build


def test_the_default_is_resnet_8() -> None:
    """Eight weighted layers on the main path: the stem, two in each of three blocks, the head."""
    model = build(ResnetConfig(), (1, 28, 28), 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + sum(isinstance(m, nn.Linear) for m in model.modules()) == 8


@pytest.mark.parametrize(
    ("shape", "sides"), [((1, 8, 8), (8, 4, 2)), ((3, 32, 32), (32, 16, 8)), ((1, 9, 9), (9, 5, 3))]
)
def test_each_stage_doubles_the_channels_and_halves_the_sides(
    shape: tuple[int, int, int], sides: tuple[int, ...]
) -> None:
    model = build(ResnetConfig(width=8, blocks=(2, 1, 1)), shape, 10)
    features = model.stem(torch.randn(1, *shape))
    shapes = []
    for block in model.blocks:
        features = block(features)
        shapes.append(tuple(features.shape[1:]))
    first, second, third = sides
    assert shapes == [(8, first, first), (8, first, first), (16, second, second), (32, third, third)]


def test_a_block_without_residual_is_the_rectified_identity() -> None:
    block = ResidualBlock(8, 8, stride=1, groups=2)
    nn.init.zeros_(block.residual[-1].weight)
    features = torch.randn(2, 8, 5, 5)
    assert torch.equal(block(features), torch.relu(features))


def test_a_block_adds_the_residual_to_the_projected_shortcut() -> None:
    block = ResidualBlock(8, 16, stride=2, groups=2)
    features = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(features), torch.relu(block.shortcut(features) + block.residual(features)))
    assert block(features).shape == (2, 16, 3, 3)
    # The projection sees every second pixel only.
    every_second = nn.functional.conv2d(features[:, :, ::2, ::2], block.shortcut[0].weight)
    torch.testing.assert_close(block.shortcut[0](features), every_second)


def test_a_block_does_not_write_into_its_input() -> None:
    block = ResidualBlock(8, 8, stride=1, groups=2)
    features = torch.randn(2, 8, 5, 5)
    before = features.clone()
    block(features)
    assert torch.equal(features, before)
