"""Layers that are run again in the backward pass: the same gradients, private or not, for less memory."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from privacy.dpsgd.engine import private_hooks
from privacy.dpsgd.gradient_checkpointing import checkpoint_layers
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.layers.recurrent import Lstm
from security.errors import UsageError
from shared_models.attention import Block
from shared_models.example_form import ExampleForm
from shared_models.lora import add_lora
from shared_models.registry import build

PLACES, KINDS = 9, 20


class Sequence(nn.Module):
    """Alike layers of any kind between an embedding and a head."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.embed = nn.Embedding(KINDS, 12)
        self.layers = layers
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.embed(tokens)
        for layer in self.layers:
            states = layer(states)
        logits: Tensor = self.head(states.mean(1))
        return logits


class Odd(nn.Module):
    """A layer of which one part has no sampler, and one is used twice."""

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(12))

        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(x) * self.weight

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.twice = Odd.Scale(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.twice(self.scale(x) + self.twice(x)))


class Recurrent(nn.Module):
    """A layer whose gradients are made of an inner tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.lstm = nn.LayerNorm(12), Lstm(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.lstm(self.norm(x))[0]
        return x + states


def blocks(dropout: float = 0.0) -> nn.Module:
    return Sequence(nn.ModuleList(Block(12, 3, 24, dropout) for _ in range(3)))


def adapters() -> nn.Module:
    """Frozen layers with adapters, below which nothing learns."""
    model = blocks()
    model.requires_grad_(False)
    add_lora(model.layers, ("query", "value"), rank=2, alpha=4.0)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".down." in name or ".up." in name or name.startswith("head"))
        if ".up." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def last_layer_alone() -> nn.Module:
    model = blocks()
    model.embed.requires_grad_(False)  # type: ignore[union-attr]
    model.layers[:2].requires_grad_(False)  # type: ignore[index]
    return model


NETWORKS = {
    "blocks": blocks,
    "adapters": adapters,
    "last-layer-alone": last_layer_alone,
    "unknown-parts": lambda: Sequence(nn.ModuleList(Odd() for _ in range(3))),
    "tapped": lambda: Sequence(nn.ModuleList(Recurrent() for _ in range(2))),
    "zoo": lambda: build("transformer", {"dim": 12, "heads": 3}, form=ExampleForm((PLACES,), 3, KINDS), seed=1),
}


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, KINDS, (6, PLACES), generator=generator)
    return tokens, torch.randint(0, 3, (6,), generator=generator)


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A network, and the same with layers that are run again."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = NETWORKS[request.param]().train()
    other = copy.deepcopy(model)
    assert checkpoint_layers(other) > 1
    return model, other


def runs(model: nn.Module, kind: type[nn.Module]) -> tuple[list[int], list[RemovableHandle]]:
    """Counts how often layers of a kind are run."""
    count = [0]

    def ran(*_: object) -> None:
        count[0] += 1

    return count, [layer.register_forward_hook(ran) for layer in model.modules() if isinstance(layer, kind)]


def test_private_sums_are_the_same_to_the_bit(pair: tuple[nn.Module, nn.Module], batch: tuple[Tensor, Tensor]) -> None:
    one, other = (clipped_gradient_sum(model, [batch, batch], clipping_norm=0.1) for model in pair)
    np.testing.assert_array_equal(one, other)


def test_plain_gradients_are_the_same_to_the_bit(
    pair: tuple[nn.Module, nn.Module], batch: tuple[Tensor, Tensor]
) -> None:
    found = []
    for model in pair:
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_layers_are_run_twice_and_names_stay(batch: tuple[Tensor, Tensor]) -> None:
    model = blocks().train()
    names = list(model.state_dict())
    checkpoint_layers(model)
    assert list(model.state_dict()) == names
    count, handles = runs(model, nn.LayerNorm)
    clipped_gradient_sum(model, [batch], clipping_norm=0.1)
    for handle in handles:
        handle.remove()
    assert count[0] == 2 * 6  # two in each of three blocks


def test_what_is_kept_for_the_backward_pass_is_less(batch: tuple[Tensor, Tensor]) -> None:
    def kept(model: nn.Module) -> int:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with private_hooks(model), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch[0])
        return sum(sizes.values())

    whole, spared = adapters().train(), adapters().train()
    checkpoint_layers(spared)
    assert kept(spared) < kept(whole) / 4


def test_dropout_draws_the_same_masks_again(batch: tuple[Tensor, Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one = blocks(dropout=0.5).train()
        other = copy.deepcopy(one)
        checkpoint_layers(other)
        sums = []
        for model in (one, other):
            torch.manual_seed(7)
            sums.append(clipped_gradient_sum(model, [batch], clipping_norm=0.1))
    np.testing.assert_array_equal(*sums)


def test_parameters_ask_for_gradients_again_after_a_backward_pass(batch: tuple[Tensor, Tensor]) -> None:
    model = blocks().train()
    checkpoint_layers(model)
    clipped_gradient_sum(model, [batch], clipping_norm=0.1)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_in_evaluation_it_computes_what_it_did(batch: tuple[Tensor, Tensor]) -> None:
    model = blocks().eval()
    with torch.no_grad():
        before = model(batch[0])
        checkpoint_layers(model)
        assert torch.equal(model(batch[0]), before)


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn"])
def test_a_network_without_alike_layers_is_refused(name: str) -> None:
    model = build(name, {}, form=ExampleForm((1, 8, 8), 3), seed=1)
    with pytest.raises(UsageError, match=r"training\.gradient_checkpointing: the network has no list of alike layers"):
        checkpoint_layers(model)
