"""Networks of a user's own, for tests."""

import torch
from torch import nn

from shared_models.example_form import ExampleForm


def build(form: ExampleForm, width: int = 6, *, norm: str = "group") -> nn.Module:
    norms = {"group": nn.GroupNorm(2, width), "batch": nn.BatchNorm2d(width), "none": nn.Identity()}
    return nn.Sequential(
        nn.Conv2d(form.shape[0], width, 3, padding=1),
        norms[norm],
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * width, form.classes),
    )


def needs(form: ExampleForm, width: int) -> nn.Module:
    return build(form, width)


def anything(form: ExampleForm, **options: object) -> nn.Module:
    del options
    return build(form)


def nothing(form: ExampleForm) -> str:
    return str(form)


def fails(form: ExampleForm) -> nn.Module:
    raise RuntimeError(f"no such form\nas {form}")


NUMBER = torch.ones(1)
