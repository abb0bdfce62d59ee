"""The network that is handed over: what the plan's network computes, with everything in front of it that is public."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from privacy.dpsgd.layers.recurrent import Gru, Lstm
from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.features.encoders import ENCODERS
from shared_models.lora import merge_lora
from shared_models.plan import Plan


class Served(nn.Module):
    """Maps examples as the data has them, (n, *input_shape), to logits; adapters are folded in.

    The card's normalisation is inside, and a frozen pretrained map where the plan has one.
    """

    def __init__(self, model: nn.Module, card: DataCard, encoder: nn.Module | None) -> None:
        super().__init__()
        self.model = _with_torchs_layers(merge_lora(copy.deepcopy(model))).eval().requires_grad_(False)
        self.encoder = encoder
        self.normalises = card.vocabulary is None and not card.columns and encoder is None
        self.mean, self.std = card.mean, card.std

    def forward(self, examples: Tensor) -> Tensor:
        """Logits (n, classes)."""
        if self.encoder is not None:
            examples = self.encoder(examples)
        elif self.normalises:
            examples = (examples - self.mean) / self.std
        logits: Tensor = self.model(examples)
        return logits


def _with_torchs_layers(model: nn.Module) -> nn.Module:
    """Layers that were made for private training become torch's own, which every exporter knows, in place."""
    for path, module in list(model.named_modules()):
        if isinstance(module, Lstm | Gru):
            kind = nn.LSTM if isinstance(module, Lstm) else nn.GRU
            layer = kind(
                module.input_size,
                module.hidden_size,
                num_layers=module.num_layers,
                bias=module.bias,
                dropout=module.dropout,
                bidirectional=module.bidirectional,
                batch_first=True,
            )
            layer.load_state_dict(module.state_dict())
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer)
    return model


def served(plan: Plan, model: nn.Module) -> Served:
    """A plan's trained network as it is handed over, in evaluation mode.

    Raises:
        UsageError: its features are of a kind that is no network.
    """
    encoder = None
    if plan.features is not None:
        if plan.features.name not in ENCODERS:
            raise UsageError(
                f"features.name = '{plan.features.name}': is made of matrices that each machine derives, no network; "
                "the run's model/model.safetensors is all there is to hand over"
            )
        encoder = ENCODERS[plan.features.name].network()
    return Served(model, card_for(plan.data), encoder).eval()


def examples_for(plan: Plan, n: int, *, seed: int = 0) -> Tensor:
    """Made-up examples (n, *input_shape), in the range that a card's constants speak of: for checks, nobody's data."""
    card, generator = card_for(plan.data), torch.Generator().manual_seed(seed)
    shape = (n, *card.input_shape)
    if card.vocabulary is not None:
        tokens = torch.randint(1, card.vocabulary, shape, generator=generator)
        lengths = torch.randint(1, card.input_shape[0] + 1, (n, 1), generator=generator)
        return torch.where(torch.arange(card.input_shape[0]) < lengths, tokens, 0).float()
    return torch.randn(shape, generator=generator) * card.std + card.mean
