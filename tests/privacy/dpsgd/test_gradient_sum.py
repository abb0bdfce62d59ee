"""The clipped sum that leaves for a joint step: equal to each example alone, in closed form and through hooks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from privacy.dpsgd import gradient_sum
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.linear_head import linear_head
from privacy.example_sum_grid import SLACK
from security.errors import UsageError

Batch = tuple[Tensor, Tensor]


def batch(n: int, *shape: int, classes: int = 5, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *shape, generator=generator)
    return x, torch.randint(0, classes, (n,), generator=generator)


def brute_force(model: nn.Module, data: Batch, clip: float) -> np.ndarray:
    """Each example alone through autograd, in float64; clipped and added up one by one."""
    copy = type_double(model)
    trained = [p for p in copy.parameters() if p.requires_grad]
    total = np.zeros(sum(p.numel() for p in trained))
    for x, y in zip(*data, strict=True):
        loss = nn.functional.cross_entropy(copy(x[None].double()), y[None])
        gradient = np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, trained)])
        total += gradient * min(1.0, clip / np.linalg.norm(gradient))
    return total


def type_double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


def linear(bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=bias))


def frozen_body() -> nn.Module:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5))
    model[1].requires_grad_(False)
    return model


def two_layers() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5))


def convolution() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(18, 5))


def not_at_the_end() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh())


def mixing_body() -> nn.Module:
    """Nothing of it is trained but the head, and yet an example's gradient hangs on the others."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12, affine=False), nn.Linear(12, 5))
    return model.train()


def test_a_frozen_body_that_mixes_examples_is_refused() -> None:
    with pytest.raises(UsageError, match="BatchNorm1d"):
        clipped_gradient_sum(mixing_body(), [batch(8, 3, 4)], clipping_norm=1.0)


def test_more_examples_than_the_bound_is_shown_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_sum, "MOST_EXAMPLES", 15)
    with pytest.raises(ValueError, match="more than 15 examples"):
        clipped_gradient_sum(linear(), [batch(8, 3, 4), batch(8, 3, 4)], clipping_norm=1.0)


MODELS = {
    "linear": linear,
    "linear without bias": lambda: linear(bias=False),
    "frozen body": frozen_body,
    "two layers": two_layers,
    "convolution": convolution,
    "not at the end": not_at_the_end,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("clip", [0.05, 1.0, 1e6])
def test_it_is_the_sum_of_each_example_alone(name: str, clip: float) -> None:
    model, data = MODELS[name](), batch(150, 1, 4, 3)
    found = clipped_gradient_sum(model, [data], clipping_norm=clip)
    expected = brute_force(model, data, clip)
    assert found.dtype == np.float64
    tolerance = 1e-5 if linear_head(model, data[0]) is None else 1e-6  # weights are float32; hooks' gradients too
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("name", MODELS)
def test_how_it_is_split_makes_no_difference(name: str) -> None:
    model, (x, y) = MODELS[name](), batch(130, 1, 4, 3)
    whole = clipped_gradient_sum(model, [(x, y)], clipping_norm=1.0)
    parts = clipped_gradient_sum(model, zip(x.split(17), y.split(17), strict=True), clipping_norm=1.0)
    assert np.linalg.norm(whole - parts) <= 1e-5 * np.linalg.norm(whole)


def test_closed_form_is_taken_where_it_may_be() -> None:
    x, _ = batch(3, 1, 4, 3)
    taken = {name for name, make in MODELS.items() if linear_head(make(), x) is not None}
    assert taken == {"linear", "linear without bias", "frozen body"}


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_on_the_model(name: str) -> None:
    model = MODELS[name]()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    clipped_gradient_sum(model, [batch(5, 1, 4, 3)], clipping_norm=1.0)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and getattr(p, "grad_sample", None) is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", MODELS)
def test_a_client_without_records_has_a_sum_of_zeros(name: str) -> None:
    model = MODELS[name]()
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    empty = batch(0, 1, 4, 3)
    assert (clipped_gradient_sum(model, [], clipping_norm=1.0) == np.zeros(size)).all()
    assert (clipped_gradient_sum(model, [empty], clipping_norm=1.0) == np.zeros(size)).all()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    scale=st.sampled_from([0.0, 1e-40, 1e-20, 1.0, 1e10, 1e19, 3e38]),
    clip=st.sampled_from([1e-6, 1.0, 30.0]),
    others=st.integers(0, 70),
    seed=st.integers(0, 1000),
)
def test_one_example_more_moves_it_by_the_clipping_norm_at_most(
    name: str, scale: float, clip: float, others: int, seed: int
) -> None:
    model = MODELS[name]()
    x, y = batch(others + 1, 1, 4, 3, seed=seed)
    x[0] *= scale
    x = x.clamp(-3e38, 3e38)  # records are finite; their gradients need not be
    with_it = clipped_gradient_sum(model, [(x, y)], clipping_norm=clip)
    without = clipped_gradient_sum(model, [(x[1:], y[1:])], clipping_norm=clip)
    assert np.isfinite(with_it).all()
    assert np.linalg.norm(with_it - without) <= clip * (1 + SLACK)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_not_finite_adds_nothing(name: str) -> None:
    model, (x, y) = MODELS[name](), batch(9, 1, 4, 3)
    bad = x.clone()
    bad[4] = math.nan
    expected = clipped_gradient_sum(
        model, [(x[[0, 1, 2, 3, 5, 6, 7, 8]], y[[0, 1, 2, 3, 5, 6, 7, 8]])], clipping_norm=1.0
    )
    found = clipped_gradient_sum(model, [(bad, y)], clipping_norm=1.0)
    assert np.linalg.norm(found - expected) <= 1e-5
    for parameter in model.parameters():
        parameter.data.fill_(math.inf)  # a model that a server has spoilt
    assert (clipped_gradient_sum(model, [(x, y)], clipping_norm=1.0) == 0).all()


def test_adding_up_many_records_stays_within_the_slack() -> None:
    """100,000 equal gradients in many parts: the error is far below what the noise is made for."""
    model = linear()
    x, y = batch(1, 1, 4, 3)
    one = clipped_gradient_sum(model, [(x, y)], clipping_norm=1.0)
    many = clipped_gradient_sum(model, [(x.expand(100_000, -1, -1, -1), y.expand(100_000))], clipping_norm=1.0)
    assert np.linalg.norm(many - 100_000 * one) <= SLACK * 1e-3
