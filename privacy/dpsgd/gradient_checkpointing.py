"""Layers that keep what goes into them and nothing else, and are run again when their gradients are made.

A network of many alike layers then needs the memory of one of them, for a third more time (Chen et al. 2016, "Training
Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). Under book-keeping the inputs of trained layers are kept all
the same, for their gradients are made of them; what is spared is everything between, which for adapters is nearly all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from privacy.dpsgd.bookkeeping import at_work
from security.errors import UsageError


def checkpoint_layers(model: nn.Module) -> int:
    """Have the layers of each list of alike layers run again in the backward pass; how many these are.

    Names, parameters and what the network computes stay as they are: dropout draws the same masks again.

    Raises:
        UsageError: the network has no such list.
    """
    layers = list(_alike(model))
    if not layers:
        raise UsageError(
            "training.gradient_checkpointing: the network has no list of alike layers (an nn.ModuleList or "
            "nn.Sequential of one class, each of several parts) to be run again; remove it"
        )
    for layer in layers:
        layer.forward = partial(_run_again, layer.forward)
    return len(layers)


def _alike(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of the outermost lists of alike ones."""
    for part in model.children():
        layers = list(part) if isinstance(part, nn.ModuleList | nn.Sequential) else []
        if len(layers) > 1 and len({type(layer) for layer in layers}) == 1 and all(map(_is_composed, layers)):
            yield from layers
        else:
            yield from _alike(part)


def _is_composed(layer: nn.Module) -> bool:
    """Of several parts, and without parameters that are no part's: those would need it whole."""
    return len(list(layer.children())) > 1 and not list(layer.parameters(recurse=False))


def _run_again(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=_contexts, **named)


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What is around a layer the first time, and when it is run again: then nothing is to be watched twice."""
    hooks = at_work()
    return nullcontext(), nullcontext() if hooks is None else hooks.run_again()
