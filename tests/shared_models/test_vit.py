"""The vision transformer."""

from __future__ import annotations

import math

import pytest
import torch

from security.errors import UsageError
from shared_models import registry
from shared_models.attention import Attention
from shared_models.example_form import ExampleForm
from shared_models.vit import VitConfig, build, patch_side, to_patches


def test_attention_is_softmax_of_scaled_scores_times_values() -> None:
    dim, heads, width = 12, 3, 4
    attention = Attention(dim, heads).double()
    tokens = torch.randn(2, 5, dim, dtype=torch.float64)
    query = tokens @ attention.query.weight.T + attention.query.bias
    key = tokens @ attention.key.weight.T
    value = tokens @ attention.value.weight.T + attention.value.bias
    attended = torch.empty(2, 5, dim, dtype=torch.float64)
    for example in range(2):
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            scores = query[example, :, own] @ key[example, :, own].T / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
            attended[example, :, own] = weights @ value[example, :, own]
    expected = attended @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-12, atol=1e-12)


def test_a_key_bias_would_change_nothing() -> None:
    """Why there is none: it shifts all scores of a query alike, and the softmax cancels the shift."""
    attention = Attention(8, 2).double()
    tokens = torch.randn(2, 5, 8, dtype=torch.float64)
    without = attention(tokens)
    attention.key.bias = torch.nn.Parameter(torch.randn(8, dtype=torch.float64))
    torch.testing.assert_close(attention(tokens), without, rtol=1e-12, atol=1e-12)


def test_patches_are_cut_row_by_row() -> None:
    images = torch.randn(3, 2, 6, 4)
    patches = to_patches(images, 2)
    assert patches.shape == (3, 6, 8)
    for row in range(3):
        for column in range(2):
            tile = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[:, 2 * row + column], tile.flatten(1))


@pytest.mark.parametrize(
    ("height", "width", "side"),
    [(8, 8, 2), (28, 28, 7), (32, 32, 8), (64, 64, 16), (12, 8, 2), (30, 45, 5), (13, 13, 1)],
)
def test_the_default_patch_divides_both_sides_and_is_at_most_a_quarter_of_the_shorter(
    height: int, width: int, side: int
) -> None:
    assert patch_side(height, width) == side
    assert build(VitConfig(), (1, height, width), 10).patch == side


def test_a_patch_that_does_not_divide_the_image_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError) as caught:
        registry.build("vit", {"patch": 5}, form=ExampleForm((1, 28, 14), 10), seed=0)
    assert str(caught.value) == (
        "model.options.patch = 5: allowed: 0, or a common divisor of height 28 and width 14: [1, 2, 7, 14]"
    )


def test_only_the_position_embedding_knows_where_a_patch_is() -> None:
    model = build(VitConfig(), (1, 8, 8), 10).double()
    image = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    moved = torch.cat([image[:, :, 2:], image[:, :, :2]], dim=2)  # rotates whole rows of patches
    assert not torch.allclose(model(image), model(moved), atol=1e-6)
    torch.nn.init.zeros_(model.positions.weight)
    torch.testing.assert_close(model(image), model(moved), rtol=1e-10, atol=1e-10)


def test_options_shape_the_network() -> None:
    model = build(VitConfig(patch=4, dim=24, depth=3, heads=2, mlp_ratio=4), (3, 16, 8), 5)
    assert len(model.blocks) == 3
    assert model.positions.weight.shape == (8, 24)
    assert model.embed.weight.shape == (24, 48)
    assert [tuple(block.mlp[1].weight.shape) for block in model.blocks] == [(96, 24)] * 3
    assert {block.attention.heads for block in model.blocks} == {2}
    assert model.head.weight.shape == (5, 24)
