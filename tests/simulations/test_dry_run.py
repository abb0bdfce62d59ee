"""A step by shapes alone: what it counts is what a real one multiplies and keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.registry import build_for, dry
from simulations.dry_run import dry_step
from simulations.estimate import estimate
from simulations.scenarios import find_plan

FORM = ExampleForm((5,), 3)


def on_meta(make: object) -> nn.Module:
    with torch.device("meta"):
        return make()  # type: ignore[operator, no-any-return]


def test_two_linear_layers_in_closed_form() -> None:
    """n a b multiplications forward; backward those of the weights, and of the inputs of all but the first layer."""
    n = 7
    network = on_meta(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    found = dry_step(network, FORM, n)
    assert found is not None
    assert found.forward == 2 * n * (5 * 4 + 4 * 3)
    assert found.backward == 2 * n * (5 * 4 + 2 * 4 * 3)
    assert found.kept == 4 * n * (5 + 4)  # the first layer's inputs, and tanh's outputs, which are the second's inputs
    assert all(parameter.grad is None for parameter in network.parameters())


def test_frozen_layers_keep_less_and_make_no_gradients_of_weights() -> None:
    network = on_meta(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))
    network[0].requires_grad_(False)
    found = dry_step(network, FORM, 2)
    assert found is not None
    assert found.backward == 2 * 2 * 4 * 3
    assert found.kept == 4 * 2 * 4


@pytest.mark.parametrize("model", ["cnn", "vit", "mlp"])
def test_what_is_kept_is_what_a_real_step_keeps(model: str) -> None:
    plan = Plan.model_validate({"data": {"name": "digits"}, "model": {"name": model}, "privacy": {"trust": "none"}})
    real, kept = build_for(plan), {}
    parameters = {one.untyped_storage().data_ptr() for one in real.parameters()}

    def keep(some: Tensor) -> Tensor:
        kept[some.untyped_storage().data_ptr()] = some
        return some

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda some: some):
        real(torch.zeros(6, 1, 8, 8)).sum().backward()
    size = sum(some.untyped_storage().nbytes() for name, some in kept.items() if name not in parameters)
    found = dry_step(dry(plan), ExampleForm((1, 8, 8), 10), 6)
    assert found is not None
    assert found.kept == pytest.approx(size, rel=0.1)  # processors and meta keep other scraps of attention and pooling


def test_a_network_that_asks_for_values_is_not_known() -> None:
    class Asks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = super().forward(x)
            return made if x.sum().item() > 0 else -made

    assert dry_step(on_meta(lambda: Asks(5, 3)), FORM, 2) is None


def test_an_estimate_tells_them_and_checkpointing_keeps_less() -> None:
    keys = ("model.name=vit", "model.options={depth = 6}", "training.max_physical_batch=4")
    plain, spared = (
        estimate(find_plan("digits", (*keys, f"training.gradient_checkpointing={value}")), probe=False)
        for value in ("false", "true")
    )
    assert plain.step is not None
    assert spared.step is not None
    assert spared.step.kept < plain.step.kept / 2
    assert spared.step.backward > plain.step.backward  # the layers are run again
    assert plain.batch == 4
    assert plain.per_example == 4 * 4 * plain.trained
    told = plain.as_json()
    assert told["activations"] == plain.step.kept
    assert told["operations"]["forward"] == plain.step.forward
