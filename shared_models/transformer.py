"""Transformer for texts and signals of sensors (Vaswani et al. 2017, arXiv 1706.03762), with learned embeddings.

The norms stand before attention and perceptron (Xiong et al. 2020, arXiv 2002.04745). What is judged is the mean of all
places that are no padding; in a language model each place sees those before it alone and is judged by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from shared_models.attention import Block
from shared_models.example_form import MOST_PLACES, PADDING, ExampleForm
from shared_models.recurrent import mean_of_text


@dataclass(frozen=True)
class TransformerConfig:
    """Options of the network.

    Attributes:
        dim: width of a token; a multiple of `heads`.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: width of a block's hidden layer, in units of `dim`.
        dropout: probability that a value of a block's output is left out in a training step, in [0, 1).
    """

    dim: int = 64
    depth: int = 2
    heads: int = 4
    mlp_ratio: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.dim <= 2048:
            raise ValueError("dim: from 1 to 2048")
        if not 1 <= self.depth <= 48:
            raise ValueError("depth: from 1 to 48")
        if self.heads < 1 or self.dim % self.heads:
            raise ValueError(f"heads: a divisor of dim {self.dim}")
        if not 1 <= self.mlp_ratio <= 8:
            raise ValueError("mlp_ratio: from 1 to 8")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class Transformer(nn.Module):
    """Maps tokens (batch, places) or signals (batch, channels, times) to logits (batch, classes); as a language model
    to logits (batch, places, classes)."""

    def __init__(self, config: TransformerConfig, form: ExampleForm) -> None:
        super().__init__()
        self.at_each_place = form.at_each_place
        self.embed: nn.Module = (
            nn.Linear(form.shape[0], config.dim)
            if form.vocabulary is None
            else nn.Embedding(form.vocabulary, config.dim)
        )
        self.reads_tokens = form.vocabulary is not None
        self.positions = nn.Embedding(form.shape[-1], config.dim)
        for table in (self.positions, *([self.embed] if self.reads_tokens else [])):
            nn.init.normal_(table.weight, std=0.02)
        hidden = config.dim * config.mlp_ratio
        self.blocks = nn.ModuleList(
            Block(config.dim, config.heads, hidden, config.dropout) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, form.classes)

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """Logits; see the class for shapes."""
        inputs = examples.long() if self.reads_tokens else examples.transpose(1, 2)
        # The indices are repeated for each example so that each gets its own gradient of the embedding.
        places = torch.arange(inputs.shape[1], device=examples.device).expand(inputs.shape[:2])
        states = self.embed(inputs) + self.positions(places)
        seen = self._seen(inputs)
        for block in self.blocks:
            states = block(states, seen)
        states = self.norm(states)
        if not self.at_each_place:
            states = mean_of_text(states, inputs) if self.reads_tokens else states.mean(dim=1)
        logits: torch.Tensor = self.head(states)
        return logits

    def _seen(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """What each place may look at: (1, 1, places, places) or (batch, 1, 1, places)."""
        if self.at_each_place:
            length = inputs.shape[1]
            return torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()[None, None]
        if not self.reads_tokens:
            return None
        there = inputs != PADDING
        # A text of nothing but padding looks at all of it: of no places a softmax would be NaN.
        return (there | ~there.any(dim=1, keepdim=True))[:, None, None]


def build(config: TransformerConfig, form: ExampleForm) -> Transformer:
    """The network for texts or signals.

    Raises:
        ValueError: the input is neither.
    """
    if (form.vocabulary is None and len(form.shape) != 2) or form.shape[-1] > MOST_PLACES:
        raise ValueError(f"takes texts (places,) of tokens, or signals (channels, times), of at most {MOST_PLACES}")
    return Transformer(config, form)
