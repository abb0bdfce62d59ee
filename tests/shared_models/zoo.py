"""For tests of every network that a plan can name: examples that it takes."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from shared_models.example_form import ExampleForm

_IMAGES: Final = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 12, 8), (1, 64, 64))
_SEQUENCES: Final = (
    ExampleForm((6,), 4, vocabulary=30),
    ExampleForm((5, 9), 4),
    ExampleForm((7,), 12, vocabulary=12, at_each_place=True),
)

_FORMS: Final = {
    **dict.fromkeys(
        ("cnn", "convnet", "inception", "resnet", "vit"), tuple(ExampleForm(shape, 4) for shape in _IMAGES)
    ),
    **dict.fromkeys(("linear", "mlp"), tuple(ExampleForm(shape, 4) for shape in (*_IMAGES, (30,), (4, 5)))),
    "cnn1d": tuple(ExampleForm(shape, 4) for shape in ((6, 32), (1, 8), (3, 33), (2, 128))),
    **dict.fromkeys(("recurrent", "transformer"), _SEQUENCES),
}


PRETRAINED: Final = ("minilm",)
"""Networks that need weights to be fetched: they have tests of their own."""
NAMES: Final = tuple(sorted(_FORMS))


def forms(name: str) -> tuple[ExampleForm, ...]:
    """Of examples that a network takes, a small one first."""
    return _FORMS[name]


def examples(form: ExampleForm, n: int, *, seed: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    """Some examples (n, *shape) of a form; tokens hold no padding."""
    generator = torch.Generator().manual_seed(seed)
    if form.vocabulary is not None:
        return torch.randint(1, form.vocabulary, (n, *form.shape), generator=generator).to(dtype)
    return torch.randn(n, *form.shape, generator=generator, dtype=dtype)


def labels(form: ExampleForm, n: int, *, seed: int = 7) -> Tensor:
    """Labels (n,) or (n, places) of such examples."""
    generator = torch.Generator().manual_seed(seed)
    if form.at_each_place:
        return torch.randint(1, form.classes, (n, *form.shape), generator=generator)
    return torch.arange(n) % form.classes
