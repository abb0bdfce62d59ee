"""Networks and batches that the cost of a private step is measured on (`simulations.benchmarks.dp_step`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.gradient_checkpointing import checkpoint_layers
from privacy.dpsgd.layers.recurrent import Lstm
from shared_models.example_form import ExampleForm
from shared_models.registry import build

CLASSES = 10


class LoraLinear(nn.Module):
    """A frozen layer beside two small trained ones (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, size: int, rank: int = 8) -> None:
        super().__init__()
        self.frozen = nn.Linear(size, size).requires_grad_(False)
        self.down, self.up = nn.Linear(size, rank, bias=False), nn.Linear(rank, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of (n, T, size), to the same shape."""
        adapted: Tensor = self.frozen(x) + self.up(self.down(x))
        return adapted


class EncoderBlock(nn.Module):
    """Attention and a perceptron, each beside its input."""

    def __init__(self, size: int, heads: int, hidden: int, *, lora: bool) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value = (LoraLinear(size) if lora else nn.Linear(size, size) for _ in range(2))
        self.key, self.out = nn.Linear(size, size), nn.Linear(size, size)
        self.norms = nn.ModuleList([nn.LayerNorm(size), nn.LayerNorm(size)])
        self.rise, self.fall = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """Of tokens (n, T, size), to the same shape."""
        given = self.norms[0](x)
        query, key, value = (
            layer(given).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        attended = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.fall(functional.gelu(self.rise(self.norms[1](x))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A text Transformer: tokens (n, T) to logits. With `lora` only its adapters and its head are trained."""

    def __init__(self, vocabulary: int, size: int, heads: int, hidden: int, depth: int, *, lora: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, size)
        self.blocks = nn.Sequential(*(EncoderBlock(size, heads, hidden, lora=lora) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(size), nn.Linear(size, CLASSES)
        if lora:
            self.requires_grad_(False)
            for layer in [m for m in self.modules() if isinstance(m, LoraLinear)]:
                layer.down.requires_grad_(True)
                layer.up.requires_grad_(True)
            self.head.requires_grad_(True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(tokens))).mean(dim=1))
        return logits


class Series(nn.Module):
    """A recurrent layer and a head on its last output: (n, T, features) to logits."""

    def __init__(self, layer: nn.Module, hidden: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(hidden, CLASSES)

    def forward(self, series: Tensor) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.head(self.layer(series)[0][:, -1])
        return logits


@dataclass(frozen=True)
class Case:
    """One network and batch.

    Attributes:
        make: the network, for an engine.
        inputs: a batch of so many examples.
        batch: how many.
    """

    make: Callable[[str], nn.Module]
    inputs: Callable[[int], Tensor]
    batch: int


def _images(*shape: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randn(n, *shape)


def _tokens(vocabulary: int, places: int) -> Callable[[int], Tensor]:
    return lambda n: torch.randint(vocabulary, (n, places))


def _registered(name: str, shape: tuple[int, ...], **options: object) -> Callable[[str], nn.Module]:
    return lambda _: build(name, options, form=ExampleForm(shape, CLASSES), seed=1)


def _series(engine: str) -> nn.Module:
    """Plain: torch's own; Veil's; Opacus' for the engines that can't take torch's."""
    kind: Callable[..., nn.Module] = {"plain": nn.LSTM, "veil": Lstm}.get(engine, DPLSTM)
    options = {} if engine == "veil" else {"batch_first": True}
    return Series(kind(32, 64, **options), 64)


def _adapted_and_run_again(engine: str) -> nn.Module:
    """With layers that are run again in the backward pass; Opacus' hooks know no such."""
    model = Encoder(2000, 384, 12, 1536, 6, lora=True)
    if engine in ("plain", "veil"):
        checkpoint_layers(model)
    return model


CASES: dict[str, Case] = {
    "cnn": Case(_registered("cnn", (1, 28, 28)), _images(1, 28, 28), 64),
    "cnn 256": Case(_registered("cnn", (1, 28, 28)), _images(1, 28, 28), 256),
    "resnet": Case(_registered("resnet", (3, 32, 32)), _images(3, 32, 32), 64),
    "vit": Case(_registered("vit", (1, 28, 28)), _images(1, 28, 28), 64),
    "transformer": Case(lambda _: Encoder(1000, 128, 4, 256, 2), _tokens(1000, 128), 32),
    "minilm lora": Case(lambda _: Encoder(2000, 384, 12, 1536, 6, lora=True), _tokens(2000, 64), 16),
    "minilm lora again": Case(_adapted_and_run_again, _tokens(2000, 64), 16),
    "lstm": Case(_series, lambda n: torch.randn(n, 64, 32), 64),
    "mlp": Case(_registered("mlp", (1, 28, 28), hidden=[256]), _images(1, 28, 28), 256),
}
