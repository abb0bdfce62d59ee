"""MiniLM, a pretrained sentence encoder (Wang et al. 2020, arXiv 2002.10957), fine-tuned for a classification.

Six BERT layers of width 384 (Devlin et al. 2019, arXiv 1810.04805), from `transformers`, with the public weights that
`veil data fetch minilm` brings. What is judged is the mean of all places that are no padding. Only what learns is
sent, clipped and charged: by default adapters (LoRA) in the last two layers, and the head.

It takes the pieces of its own vocabulary (`data.text.tokens = "wordpiece"`), or, under `[features] name = "minilm-4"`,
what its first four layers make of them: these never learn, and are then run once for each text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from torch import nn

from security.errors import UsageError
from shared_models.downloads.fetch import fetched
from shared_models.example_form import PADDING, ExampleForm
from shared_models.lora import add_lora
from shared_models.recurrent import mean_of_text

if TYPE_CHECKING:
    from transformers import BertConfig

LAYERS: Final = 6
WIDTH: Final = 384
VOCABULARY: Final = 30522
_PLACES: Final = 512
_ADAPTED: Final = ("query", "value")


@dataclass(frozen=True)
class MinilmConfig:
    """Options of the network.

    Attributes:
        train: what learns beside the head: "lora" adapters of the attention's queries and values, "layers" all of the
            last layers, or nothing else ("head").
        layers: how many of the last layers learn, from 1 to 6.
        rank: of an adapter.
        alpha: what an adapter's product is scaled by, over the rank.
    """

    train: Literal["lora", "layers", "head"] = "lora"
    layers: int = 2
    rank: int = 8
    alpha: float = 16.0

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= LAYERS:
            raise ValueError(f"layers: from 1 to {LAYERS}")
        if not 1 <= self.rank <= WIDTH:
            raise ValueError(f"rank: from 1 to {WIDTH}")
        if not 0 < self.alpha <= 1024:
            raise ValueError("alpha: above 0, at most 1024")


class Minilm(nn.Module):
    """Maps tokens (batch, places), or states between layers (batch, places, 384), to logits (batch, classes)."""

    def __init__(self, config: MinilmConfig, form: ExampleForm) -> None:
        super().__init__()
        first = 0 if form.vocabulary is not None else LAYERS_BELOW
        self.encoder = Encoder(first, LAYERS)
        learning = self.encoder.layers[-config.layers :]
        self.encoder.requires_grad_(False)
        if config.train == "lora":
            add_lora(learning, _ADAPTED, rank=config.rank, alpha=config.alpha)
            for name, parameter in learning.named_parameters():
                parameter.requires_grad_(".down." in name or ".up." in name)
        elif config.train == "layers":
            learning.requires_grad_(True)
        # The first so many learn nothing, and keep no graph.
        self.frozen = len(self.encoder.layers) - (0 if config.train == "head" else config.layers)
        self.head = nn.Linear(WIDTH, form.classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes); see the class for shapes."""
        states, there = self.encoder(examples, without_graph=self.frozen)
        logits: torch.Tensor = self.head(mean_of_text(states, there))
        return logits


LAYERS_BELOW: Final = 4
"""Layers that the features `minilm-4` have gone through."""


class Encoder(nn.Module):
    """Some of MiniLM's layers, with its public weights.

    Args:
        first: layer that examples enter at; 0: they are tokens.
        end: layer that they come out before.
    """

    def __init__(self, first: int, end: int) -> None:
        super().__init__()
        bert = _transformers()
        config = _config()
        self.embeddings = bert.BertEmbeddings(config) if first == 0 else None
        self.layers = nn.ModuleList(bert.BertLayer(config, layer_idx=number) for number in range(first, end))
        if next(self.parameters()).device.type != "meta":
            self.load_state_dict(_weights(first, end))

    def forward(self, examples: torch.Tensor, *, without_graph: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """States (batch, places, 384) behind the last layer, and which places hold something (batch, places).

        Args:
            examples: tokens (batch, places), or states (batch, places, 384) with zeros where there is padding.
            without_graph: the first so many layers (and the embeddings) are run without a graph.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and without_graph == 0):
            if self.embeddings is None:  # what there is of a place has a norm behind it, and is never all zeros
                states, there = examples, (examples != 0).any(-1)
            else:
                tokens = examples.long()
                there = tokens != PADDING
                # One row of places and kinds for each example, for those who make gradients of single examples.
                places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
                states = self.embeddings(input_ids=tokens, position_ids=places, token_type_ids=torch.zeros_like(tokens))
        # A text of nothing but padding looks at all of it: of no places a softmax would be NaN.
        seen = (there | ~there.any(dim=1, keepdim=True))[:, None, None].expand(-1, 1, there.shape[1], -1)
        for number, layer in enumerate(self.layers):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= without_graph):
                states = layer(states, seen)
        return states, there


def build(config: MinilmConfig, form: ExampleForm) -> Minilm:
    """The network for texts.

    Raises:
        ValueError: the examples are no tokens of its vocabulary, and no states of its layers.
        UsageError: its weights aren't fetched, or `transformers` isn't installed.
    """
    tokens = form.vocabulary == VOCABULARY and not form.at_each_place
    states = form.vocabulary is None and len(form.shape) == 2 and form.shape[1] == WIDTH
    if not (tokens or states) or form.shape[0] > _PLACES:
        raise ValueError(
            f"takes at most {_PLACES} tokens of its own vocabulary (data.text.tokens = 'wordpiece'), or the features "
            "'minilm-4'"
        )
    if states and config.layers > LAYERS - LAYERS_BELOW:
        raise ValueError(f"layers: from 1 to {LAYERS - LAYERS_BELOW} behind the features 'minilm-4'")
    return Minilm(config, form)


def _transformers() -> Any:
    try:
        from transformers.models.bert import modeling_bert
    except ImportError as error:
        raise UsageError("model 'minilm': needs transformers; pip install 'veil-fl[text]'") from error
    return modeling_bert


def _config() -> BertConfig:
    from transformers import BertConfig

    facts = json.loads(fetched("minilm")["config.json"].read_text(encoding="utf-8"))
    # Frozen layers draw no random numbers, and a private step none but those of nn.Dropout.
    facts |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "attn_implementation": "sdpa"}
    return BertConfig(**facts)


def _weights(first: int, end: int) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = {}
    for name, value in load_file(fetched("minilm")["model.safetensors"]).items():
        if name.startswith("embeddings.") and first == 0 and not name.endswith("position_ids"):
            found[name] = value.float()
        elif name.startswith("encoder.layer."):
            number, _, rest = name.removeprefix("encoder.layer.").partition(".")
            if first <= int(number) < end:
                found[f"layers.{int(number) - first}.{rest}"] = value.float()
    return found
