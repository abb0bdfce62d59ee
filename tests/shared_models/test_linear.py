"""The linear head, and a two-layer one, on a vector of features."""

from __future__ import annotations

import torch

from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.private_trainable import check_private_trainable
from shared_models.registry import build, build_for, count_parameters


def test_it_begins_at_zero_whatever_the_seed() -> None:
    for seed in (1, 2):
        model = build("linear", {}, form=ExampleForm((40,), 3), seed=seed)
        assert {tuple(p.shape) for p in model.parameters()} == {(3, 40), (3,)}
        assert all(float(p.detach().abs().max()) == 0 for p in model.parameters())


def test_examples_of_any_shape_are_flattened() -> None:
    model = build("linear", {}, form=ExampleForm((1, 4, 5), 3), seed=1)
    torch.nn.init.ones_(next(model.parameters()))
    x = torch.rand(2, 1, 4, 5)
    assert torch.allclose(model(x), x.sum(dim=(1, 2, 3))[:, None].expand(2, 3))


def test_linear_and_two_layer_heads_train_with_privacy_on_features() -> None:
    for name, options in (("linear", {}), ("mlp", {"hidden": [16]})):
        check_private_trainable(build(name, options, form=ExampleForm((50,), 4), seed=1), ExampleForm((50,), 4))


def test_a_plan_with_features_has_a_network_of_their_size() -> None:
    plan = Plan.model_validate(
        {"data": {"name": "fashion-mnist"}, "features": {"name": "scattering-patches"}, "model": {"name": "linear"}}
    )
    assert count_parameters(plan) == 10114 * 10
    assert build_for(plan)(torch.zeros(2, 10113)).shape == (2, 10)
