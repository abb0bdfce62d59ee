"""Any sequence classifier or causal language model of Hugging Face `transformers`, from a folder on this machine.

Bound like a network of one's own: `--model sentiment=hugging-face:FOLDER`, or in `site.toml`. The folder is what
`save_pretrained` writes; nothing is downloaded, and no code in it is run. Every party of a federation needs the same
one: what is frozen doesn't travel.

In place of dropout inside attention, which draws its numbers where a private step can't see them, there is none at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from shared_models.example_form import PADDING, ExampleForm
from shared_models.lora import add_lora

_HEADS: Final = ("classifier", "score", "lm_head", "pre_classifier", "classification_head")
_DROPOUT: Final = ("dropout", "dropout_prob", "pdrop")


class HuggingFace(nn.Module):
    """Maps tokens (batch, places) to logits (batch, classes); as a language model to (batch, places, classes)."""

    def __init__(self, network: nn.Module, form: ExampleForm) -> None:
        super().__init__()
        self.network = network
        self.classes, self.at_each_place = form.classes, form.at_each_place
        self._takes_places = "position_ids" in inspect.signature(network.forward).parameters

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        """Logits; see the class for shapes."""
        tokens = examples.long()
        given: dict[str, Any] = {"input_ids": tokens, "attention_mask": (tokens != PADDING).long()}
        if self.at_each_place:
            given |= {"attention_mask": torch.ones_like(tokens), "use_cache": False}
        if self._takes_places:  # for each example by itself, so that each gets its own gradient of the embedding
            given["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        logits: torch.Tensor = self.network(**given).logits
        return logits[..., : self.classes]


def build(
    form: ExampleForm,
    folder: str,
    *,
    train: Literal["all", "lora", "head"] = "all",
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("query", "value"),
) -> HuggingFace:
    """The network in a folder, for texts.

    Args:
        form: of an example: tokens. A language model's where every place has a label.
        folder: as `save_pretrained` writes it.
        train: everything; adapters (LoRA) and the head; or the head alone.
        rank, alpha: of the adapters.
        targets: last parts of the names of the linear layers that get adapters.

    Raises:
        ValueError: the examples are no tokens that it knows, or the options don't fit the network.
        OSError: there is no such network.
    """
    if form.vocabulary is None:
        raise ValueError("takes texts (places,) of tokens")
    network = _load(folder, form)
    known = network.config.get_text_config().vocab_size
    if known < form.vocabulary:
        raise ValueError(f"knows {known} tokens, the data has {form.vocabulary}; set data.text to what it was made for")
    made = HuggingFace(network, form)
    heads = [module for name, module in network.named_children() if name in _HEADS]
    if train == "lora":
        add_lora(network, set(targets), rank=rank, alpha=alpha)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(".down." in name or ".up." in name)
    elif train == "head":
        if not heads:
            raise ValueError(f"train: 'all' or 'lora', for there is no layer called {', '.join(_HEADS)}")
        network.requires_grad_(False)
    # A language model's head shares its weights with the embedding: adapters alone learn.
    if train == "head" or (train == "lora" and not form.at_each_place):
        for head in heads:
            head.requires_grad_(True)
    return made


def _load(folder: str, form: ExampleForm) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    if not Path(folder).is_dir():
        raise OSError(f"{folder} is no folder")
    here: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **here)
    for key in vars(config):
        if key.endswith(_DROPOUT) and isinstance(getattr(config, key), int | float):
            setattr(config, key, 0.0)
    config.pad_token_id = PADDING
    kind: Any = AutoModelForCausalLM
    if not form.at_each_place:
        config.num_labels = form.classes
        kind = AutoModelForSequenceClassification
    if torch.get_default_device().type == "meta":
        return kind.from_config(config)
    return kind.from_pretrained(folder, config=config, ignore_mismatched_sizes=True, dtype=torch.float32, **here)
