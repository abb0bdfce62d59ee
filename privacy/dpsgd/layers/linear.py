"""Per-example gradients of linear layers, on one vector an example or on a sequence of them."""

from __future__ import annotations

from torch import Tensor, nn

from privacy.dpsgd.factors import Factors
from privacy.dpsgd.layers.registry import Found, sampler_for

LARGE = 1 << 12
"""Values of a weight from which its gradients may be left as factors. Of smaller ones each is made and rounded, and the
sum is exact."""

_PLACES = 16  # of an example: beyond, the products of all with all cost more than the gradient
_WORTH = 1 << 15  # values from which that is so with several places


@sampler_for(nn.Linear)
def linear_gradients(layer: nn.Linear, inputs: Tensor, slopes: Tensor) -> Found:
    """With x_t the input and s_t the slopes at place t: the sum over t of s_t x_t^T, and of s_t.

    Args:
        layer: the layer.
        inputs: (n, ..., features in).
        slopes: (n, ..., features out).
    """
    slopes = slopes[:, None] if inputs.ndim == 2 else slopes.flatten(1, -2)
    inputs = inputs[:, None] if inputs.ndim == 2 else inputs.flatten(1, -2)
    if layer.weight.requires_grad:
        factors = Factors(slopes, inputs)
        yield layer.weight, factors if _left(layer.weight, inputs.shape[1]) else factors.rows()
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, slopes.sum(1)


def _left(weight: Tensor, places: int) -> bool:
    """Whether factors are smaller than the gradient, and their norm is quicker to find."""
    if places == 1:
        return weight.numel() >= LARGE
    return weight.numel() >= _WORTH and places <= _PLACES and places * sum(weight.shape) <= weight.numel()
