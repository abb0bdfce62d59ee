"""Magnitude pruning: the smallest weights become zero (Han et al. 2015, arXiv 1506.02626, without the retraining).

All layers' weights are compared with each other, but each layer keeps its largest: a head that was trained for a few
steps on top of a pretrained network has the smallest weights of all, and is the last thing to do without.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

_BEYOND = 1e6
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def pruned(model: nn.Module, part: float) -> float:
    """Set the smallest weights of all linear and convolutional layers to zero, in place.

    A model that was privately trained stays so: what is done to it afterwards costs nothing.

    Args:
        model: changed.
        part: of these layers' weights, over all of them together, in (0, 1); no layer loses more than (1 + part) / 2.

    Returns:
        The part that is zero now.

    Raises:
        ValueError: no such part, or no such layer.
    """
    if not 0 < part < 1:
        raise ValueError(f"a part between 0 and 1, not {part}")
    layers = [(module, "weight") for module in model.modules() if isinstance(module, _LAYERS)]
    if not layers:
        raise ValueError("there is no linear or convolutional layer")
    sizes = {(module, name): _sizes(module.weight, keep=(1 - part) / 2) for module, name in layers}
    prune.global_unstructured(layers, prune.L1Unstructured, importance_scores=sizes, amount=part)
    for module, name in layers:
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    zeros = sum(int((module.weight == 0).sum()) for module, _ in layers)
    with torch.no_grad():
        return zeros / sum(module.weight.numel() for module, _ in layers)


def _sizes(weight: Tensor, *, keep: float) -> Tensor:
    """How much each weight matters: its size, and that part of the layer's largest is beyond all others'."""
    with torch.no_grad():
        sizes = weight.abs()
        largest = sizes.flatten().topk(math.ceil(keep * sizes.numel())).indices
        sizes.view(-1)[largest] += _BEYOND
    return sizes
