"""Magnitude pruning: the smallest weights become zero (Han et al. 2015, arXiv 1506.02626, without the retraining).

Small is meant beside the others of a layer: layers are compared after each is divided by its own root mean square. A
head that was trained for a few steps on top of a pretrained network has the smallest weights of all, and is the last
thing to do without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def pruned(model: nn.Module, part: float) -> float:
    """Set the smallest weights of all linear and convolutional layers to zero, in place.

    A model that was privately trained stays so: what is done to it afterwards costs nothing.

    Args:
        model: changed.
        part: of these layers' weights, over all of them together, in (0, 1).

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
    sizes = {(module, name): _beside_the_layer(module.weight) for module, name in layers}
    prune.global_unstructured(layers, prune.L1Unstructured, importance_scores=sizes, amount=part)
    for module, name in layers:
        prune.remove(module, name)  # type: ignore[no-untyped-call]
    zeros = sum(int((module.weight == 0).sum()) for module, _ in layers)
    with torch.no_grad():
        return zeros / sum(module.weight.numel() for module, _ in layers)


def _beside_the_layer(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight.abs() / weight.square().mean().sqrt().clamp(min=torch.finfo(weight.dtype).tiny)
