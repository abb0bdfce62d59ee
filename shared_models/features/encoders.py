"""Features by pretrained networks that never learn: of images (MobileNetV2, EfficientNet-Lite0) and of texts (MiniLM).

Their weights are public, and lie in the user's cache folder once they are fetched. What they were trained on isn't
nobody's data: whoever claims a privacy for a model on top of them claims none for those pictures and texts (rule 11).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import torch
from torch import Tensor, nn

from security.errors import UsageError
from shared_models import minilm
from shared_models.cards import DataCard
from shared_models.downloads.known import download
from shared_models.example_form import ExampleForm
from shared_models.features.mobile_networks import SIDE, efficientnet_lite0, mobilenet_v2
from shared_models.recurrent import mean_of_text

_RECIPE: Final = 1  # to be raised with any change that moves a feature
_AT_ONCE: Final = 64  # examples
_MEAN: Final = (0.485, 0.456, 0.406)  # of ImageNet's red, green and blue
_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class EncoderMap:
    """A pretrained map that plans can name.

    Attributes:
        name: what a plan calls it.
        weights: name of the download.
        takes: what examples it maps.
        values: numbers that it makes of an image or a text, or of a place of a text.
        keeps_places: whether it maps each place of a text by itself, for layers that learn on top of it.
        summary: one line for people.
    """

    name: str
    weights: str
    takes: Literal["images", "texts"]
    values: int
    keeps_places: bool = False
    summary: str

    def shape(self, form: ExampleForm) -> tuple[int, ...]:
        """What an example becomes: (values,), or (places, values).

        Raises:
            UsageError: the map doesn't take such examples.
        """
        if self.takes == "texts" and (form.vocabulary != minilm.VOCABULARY or form.at_each_place):
            raise UsageError(
                f"features.name = '{self.name}': takes texts as pieces of its own vocabulary; set data.text.tokens = "
                "'wordpiece'"
            )
        if self.takes == "images" and (
            form.vocabulary is not None or len(form.shape) != 3 or form.shape[0] not in (1, 3)
        ):
            raise UsageError(
                f"features.name = '{self.name}': takes images, grey or in colour; the data's examples have shape "
                f"{form.shape}"
            )
        return (form.shape[0], self.values) if self.keeps_places else (self.values,)

    def source(self, form: ExampleForm) -> str:
        """SHA-256 over recipe and weights, in hexadecimal.

        Raises:
            UsageError: as `shape`.
        """
        self.shape(form)
        recipe = {"recipe": _RECIPE, "name": self.name, "side": SIDE, "weights": download(self.weights).sha256}
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()

    def features(self, x: Tensor, card: DataCard) -> Tensor:
        """Features (n, *shape), float32, of examples as the card normalises them.

        Raises:
            UsageError: the weights aren't fetched, or a library is missing.
        """
        found = torch.empty(len(x), *self.shape(card.form))
        network = self.network()
        with torch.inference_mode():
            for start in range(0, len(x), _AT_ONCE):
                part = x[start : start + _AT_ONCE]
                seen = part if self.takes == "texts" else part * card.std + card.mean
                found[start : start + _AT_ONCE] = network(seen)
        return found

    def network(self) -> nn.Module:
        """The map as a network in evaluation mode: of tokens, or of brightness from 0 to 1.

        Raises:
            UsageError: as `features`.
        """
        return _network(self.name)


class _OfImages(nn.Module):
    """An image network on brightness from 0 to 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.network(_as_imagenet(images))
        return made


class _OfTexts(nn.Module):
    """MiniLM's states, with zeros at padding; or their mean."""

    def __init__(self, layers: int, *, keeps_places: bool) -> None:
        super().__init__()
        self.encoder, self.keeps_places = minilm.Encoder(0, layers), keeps_places

    def forward(self, tokens: Tensor) -> Tensor:
        states, there = self.encoder(tokens)
        return states * there[..., None] if self.keeps_places else mean_of_text(states, there)


def _as_imagenet(images: Tensor, side: int = SIDE) -> Tensor:
    """Brightness (n, 1 or 3, H, W) from 0 to 1 as the networks were trained to see it."""
    colours = images.clamp(0, 1).expand(-1, 3, -1, -1)
    large = nn.functional.interpolate(colours, size=(side, side), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (large - mean) / std


_NETWORKS: Final[dict[str, Callable[[], nn.Module]]] = {
    "efficientnet-lite0": lambda: _OfImages(efficientnet_lite0()),
    "minilm": lambda: _OfTexts(minilm.LAYERS, keeps_places=False),
    "minilm-4": lambda: _OfTexts(minilm.LAYERS_BELOW, keeps_places=True),
    "mobilenet-v2": lambda: _OfImages(mobilenet_v2()),
}

ENCODERS: Final = {
    found.name: found
    for found in (
        EncoderMap(
            name="efficientnet-lite0",
            weights="efficientnet-lite0",
            takes="images",
            values=1280,
            summary="EfficientNet-Lite0, pretrained on ImageNet; veil data fetch efficientnet-lite0",
        ),
        EncoderMap(
            name="minilm",
            weights="minilm",
            takes="texts",
            values=minilm.WIDTH,
            summary="MiniLM's mean state of a text; veil data fetch minilm",
        ),
        EncoderMap(
            name="minilm-4",
            weights="minilm",
            takes="texts",
            values=minilm.WIDTH,
            keeps_places=True,
            summary="MiniLM's states after four of its six layers, for model.name = 'minilm'",
        ),
        EncoderMap(
            name="mobilenet-v2",
            weights="mobilenet-v2",
            takes="images",
            values=1280,
            summary="MobileNetV2, pretrained on ImageNet; veil data fetch mobilenet-v2",
        ),
    )
}


@lru_cache(maxsize=1)
def _network(name: str) -> nn.Module:
    return _NETWORKS[name]().eval().requires_grad_(False)
