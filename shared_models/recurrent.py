"""Recurrent network for texts and signals of sensors: LSTM (Hochreiter & Schmidhuber 1997) or GRU (Cho et al. 2014,
arXiv 1406.1078), in the form whose gates give per-example gradients (`privacy.dpsgd.layers.recurrent`).

A text's tokens are embedded, a signal's channels are taken as they are. What is judged is the mean of the states over
all places that are no padding; a language model judges each state by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from privacy.dpsgd.layers.recurrent import Gru, Lstm
from shared_models.example_form import MOST_PLACES, PADDING, ExampleForm

_CELLS = {"lstm": Lstm, "gru": Gru}


@dataclass(frozen=True)
class RecurrentConfig:
    """Options of the network.

    Attributes:
        cell: "lstm" or "gru".
        hidden: width of a state.
        layers: each takes the states of the one before.
        bidirectional: whether each layer also runs from the last place to the first; never in a language model.
        embedding: width of a token; signals have none.
        dropout: probability that a value between layers and before the logits is left out in a training step, in
            [0, 1).
    """

    cell: Literal["lstm", "gru"] = "lstm"
    hidden: int = 64
    layers: int = 1
    bidirectional: bool = False
    embedding: int = 32
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.hidden <= 2048:
            raise ValueError("hidden: from 1 to 2048")
        if not 1 <= self.layers <= 8:
            raise ValueError("layers: from 1 to 8")
        if not 1 <= self.embedding <= 2048:
            raise ValueError("embedding: from 1 to 2048")
        if not 0 <= self.dropout < 1:
            raise ValueError("dropout: from 0 to below 1")


class Recurrent(nn.Module):
    """Maps tokens (batch, places) or signals (batch, channels, times) to logits (batch, classes); as a language model
    to logits (batch, places, classes)."""

    def __init__(self, config: RecurrentConfig, form: ExampleForm) -> None:
        super().__init__()
        self.at_each_place = form.at_each_place
        self.embed = None if form.vocabulary is None else nn.Embedding(form.vocabulary, config.embedding)
        self.states = _CELLS[config.cell](
            form.shape[0] if self.embed is None else config.embedding,
            config.hidden,
            num_layers=config.layers,
            dropout=config.dropout,
            bidirectional=config.bidirectional,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden * (2 if config.bidirectional else 1), form.classes)

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """Logits; see the class for shapes."""
        if self.embed is None:
            states, _ = self.states(examples.transpose(1, 2))
            judged = states.mean(dim=1)
        else:
            tokens = examples.long()
            states, _ = self.states(self.embed(tokens))
            judged = states if self.at_each_place else mean_of_text(states, tokens)
        logits: torch.Tensor = self.head(self.dropout(judged))
        return logits


def mean_of_text(states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The mean (batch, width) of states (batch, places, width) over all places that are no padding; zero if all are."""
    there = (tokens != PADDING)[..., None].to(states.dtype)
    return (states * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)


def build(config: RecurrentConfig, form: ExampleForm) -> Recurrent:
    """The network for texts or signals.

    Raises:
        ValueError: the input is neither, or a language model would see what it is to predict.
    """
    if (form.vocabulary is None and len(form.shape) != 2) or form.shape[-1] > MOST_PLACES:
        raise ValueError(f"takes texts (places,) of tokens, or signals (channels, times), of at most {MOST_PLACES}")
    if form.at_each_place and config.bidirectional:
        raise ValueError("bidirectional: false, where the next token is to be predicted")
    return Recurrent(config, form)
