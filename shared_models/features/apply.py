"""A plan's features: the shape its network sees, and records' images turned into them.

Only this module is asked by client, server and simulations; a plan without [features] leaves everything as it is.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from security.errors import UsageError, did_you_mean
from shared_models.cards import DataCard, card_for
from shared_models.example_form import ExampleForm
from shared_models.features.encoders import ENCODERS
from shared_models.features.maps import FeatureMap, feature_map, names
from shared_models.features.store import cache_folder, keep, locked, matrices

if TYPE_CHECKING:
    from pathlib import Path

    from shared_models.plan import Plan


def model_form(plan: Plan) -> ExampleForm:
    """One example as the plan's network sees it.

    Raises:
        UsageError: the plan's data isn't described, or its features don't fit it.
    """
    form = card_for(plan.data).form
    if plan.features is None:
        return form
    return ExampleForm(_shape(plan.features.name, form), form.classes)


def model_shape(plan: Plan) -> tuple[int, ...]:
    """Shape of one example as the plan's network sees it; raises as `model_form`."""
    return model_form(plan).shape


def check_source(plan: Plan) -> str | None:
    """The pin of the plan's features as this installation derives them; None for a plan without.

    Raises:
        UsageError: the plan pins others: scores of the two sides would mean different things.
    """
    if plan.features is None:
        return None
    form, encoder = card_for(plan.data).form, ENCODERS.get(plan.features.name)
    found = _derived(plan.features.name, form).source(form.shape) if encoder is None else encoder.source(form)
    if plan.features.source not in (None, found):
        raise UsageError(
            f"features.source = '{plan.features.source[:16]}...': this installation derives '{found[:16]}...' for "
            f"'{plan.features.name}'; use the same versions of Veil and scikit-learn on all machines"
        )
    return found


def model_inputs(plan: Plan, x: Tensor, *, cached: bool) -> Tensor:
    """What the plan's network sees of records: their features, or themselves in a plan without [features].

    Args:
        plan: whose data the records are.
        x: (n, *input_shape), as the data's card normalises them.
        cached: whether the features are kept in the user's cache folder, and read back memory-mapped: for simulations,
            whose processes share them. Never at a deployed site, whose features say as much as its records.

    Raises:
        UsageError: as `check_source`, or the matrices can't be derived.
    """
    if plan.features is None:
        return x
    source, card = check_source(plan), card_for(plan.data)
    assert source is not None
    name = plan.features.name
    if not cached or len(x) == 0:
        return _features(name, card, x)
    digest = hashlib.sha256(f"{source} {card.mean!r} {card.std!r} {tuple(x.shape)}".encode())
    digest.update(x.contiguous().numpy().data)
    path = cache_folder() / "features" / "data" / f"{digest.hexdigest()}.npy"
    shape = (len(x), *_shape(name, card.form))
    found = _mapped(path, shape)
    if found is not None:
        return found
    with locked(path):
        found = _mapped(path, shape)
        if found is None:
            made = _features(name, card, x)
            found = _mapped(path, shape) if keep(path, lambda file: _write(file, made)) else made
    return made if found is None else found


def feature_names() -> tuple[str, ...]:
    """All maps that a plan may name, sorted."""
    return tuple(sorted((*names(), *ENCODERS)))


def _shape(name: str, form: ExampleForm) -> tuple[int, ...]:
    encoder = ENCODERS.get(name)
    return (_derived(name, form).size(form.shape),) if encoder is None else encoder.shape(form)


def _derived(name: str, form: ExampleForm) -> FeatureMap:
    if name not in names():
        known = feature_names()
        raise UsageError(
            f"features.name = {name!r}: unknown feature map; {did_you_mean(name, known)}allowed: {', '.join(known)}"
        )
    if form.vocabulary is not None:
        raise UsageError(f"features.name = '{name}': takes images, no texts")
    return feature_map(name)


def _features(name: str, card: DataCard, x: Tensor) -> Tensor:
    """The card's normalisation is undone: a map takes brightness from 0 to 1, whatever a plan calls its zero."""
    if len(x) == 0:
        return torch.empty(0, *_shape(name, card.form))
    if name in ENCODERS:
        return ENCODERS[name].features(x, card)
    return matrices(name, card.input_shape).features(x, scale=card.std, shift=card.mean)


def _write(path: Path, features: Tensor) -> None:
    with path.open("wb") as file:
        np.save(file, features.numpy())


def _mapped(path: Path, shape: tuple[int, ...]) -> Tensor | None:
    """The features in a file, as a view of it: whoever changes them changes a copy, page by page; None if not there."""
    try:
        found = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != shape or found.dtype != np.float32:
        return None
    return torch.from_numpy(found)
