"""The multilayer perceptron."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_models.mlp import MlpConfig, build


def linears(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def test_layers_have_the_widths_asked_for() -> None:
    assert linears(build(MlpConfig(hidden=(7, 5)), (2, 3), 4)) == [(6, 7), (7, 5), (5, 4)]


def test_without_hidden_layers_it_is_softmax_regression() -> None:
    model = build(MlpConfig(hidden=()), (2, 3), 4)
    inputs = torch.randn(5, 2, 3)
    weight, bias = model.parameters()
    torch.testing.assert_close(model(inputs), inputs.reshape(5, 6) @ weight.T + bias)


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_a_hidden_layer_is_activation_of_an_affine_map(activation: str, function: type) -> None:
    model = build(MlpConfig(hidden=(7,), activation=activation), (3,), 4)
    first, first_bias, second, second_bias = model.parameters()
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(model(inputs), function(inputs @ first.T + first_bias) @ second.T + second_bias)


def test_dropout_leaves_out_its_share_of_each_hidden_layer() -> None:
    model = build(MlpConfig(hidden=(2000, 2000), dropout=0.25), (3,), 4)
    shares: list[float] = []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.register_forward_hook(
                lambda _m, given, out: shares.append(((out == 0) & (given[0] != 0)).sum() / (given[0] != 0).sum())
            )
    model(torch.randn(20, 3))
    assert shares == [pytest.approx(0.25, abs=0.02)] * 2
