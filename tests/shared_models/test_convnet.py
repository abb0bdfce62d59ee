"""The plain convolutional network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from security.errors import UsageError
from shared_models import registry
from shared_models.convnet import ConvnetConfig, build
from shared_models.example_form import ExampleForm
from shared_models.private_trainable import check_private_trainable


def test_the_default_is_the_network_of_federated_benchmarks() -> None:
    model = build(ConvnetConfig(dropout=0.25, hidden_dropout=0.5), (3, 32, 32), 10)
    kinds = [type(m).__name__ for m in (*model.features, *model.head)]
    convolutions = ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Dropout"]
    assert kinds == [*convolutions, "Flatten", "Linear", "ReLU", "Dropout", "Linear"]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.5]
    assert [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)] == [
        (12544, 128),
        (128, 10),
    ]
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_626_442


@pytest.mark.parametrize(
    ("shape", "channels", "expected"),
    [((1, 8, 8), (4, 5), (5, 2, 2)), ((1, 28, 28), (4,), (4, 13, 13)), ((2, 9, 12), (4, 5, 6), (6, 1, 3))],
)
def test_each_convolution_takes_two_from_the_sides_and_the_pooling_halves_them(
    shape: tuple[int, int, int], channels: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    model = build(ConvnetConfig(channels=channels, hidden=3), shape, 10)
    assert tuple(model.features(torch.zeros(1, *shape)).shape[1:]) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_without_rates_nothing_is_left_out() -> None:
    model = build(ConvnetConfig(hidden=3), (1, 8, 8), 10)
    assert not any(isinstance(m, nn.Dropout) for m in model.modules())


def test_more_convolutions_than_an_image_has_room_for_are_refused() -> None:
    with pytest.raises(UsageError, match=r"model\.options\.channels = .* allowed: at most 3 counts for images of 8x12"):
        registry.build("convnet", {"channels": [4] * 4}, form=ExampleForm((1, 8, 12), 10), seed=1)
    registry.build("convnet", {"channels": [4] * 3}, form=ExampleForm((1, 8, 12), 10), seed=1)


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_it_trains_privately_with_both_rates_by_both_engines(engine: str) -> None:
    model = build(ConvnetConfig(channels=(4, 8), hidden=16, dropout=0.25, hidden_dropout=0.5), (3, 16, 16), 10)
    check_private_trainable(model, ExampleForm((3, 16, 16), 10), engine)  # type: ignore[arg-type]
