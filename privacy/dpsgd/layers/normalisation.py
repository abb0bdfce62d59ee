"""Per-example gradients of the scales and shifts of normalisation layers.

The output is scale · h + shift, with h the normalised input: the gradients are sums of slopes · h and of slopes over
all axes that a parameter is spread over. h is made again from the input, which is cheaper than to keep it.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from privacy.dpsgd.layers.registry import Found, sampler_for


@sampler_for(nn.GroupNorm)
def group_norm_gradients(layer: nn.GroupNorm, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, ...)."""
    normal = functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    yield from _of_channels(layer.weight, layer.bias, normal, slopes)


@sampler_for(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def instance_norm_gradients(layer: nn.InstanceNorm2d, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, ...); a layer with running statistics is refused before it comes here."""
    yield from _of_channels(layer.weight, layer.bias, functional.instance_norm(inputs, eps=layer.eps), slopes)


@sampler_for(nn.LayerNorm)
def layer_norm_gradients(layer: nn.LayerNorm, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, ..., *normalized_shape)."""
    normal = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    yield from _of_last_axes(layer.weight, layer.bias, normal, slopes)


@sampler_for(nn.RMSNorm)
def rms_norm_gradients(layer: nn.RMSNorm, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, ..., *normalized_shape)."""
    normal = functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    yield from _of_last_axes(layer.weight, None, normal, slopes)


def _of_channels(scale: Tensor | None, shift: Tensor | None, normal: Tensor, slopes: Tensor) -> Found:
    n, channels = slopes.shape[:2]
    slopes, normal = slopes.reshape(n, channels, -1), normal.reshape(n, channels, -1)
    yield from _of(scale, shift, normal, slopes, axes=(2,))


def _of_last_axes(scale: Tensor | None, shift: Tensor | None, normal: Tensor, slopes: Tensor) -> Found:
    assert scale is not None or shift is not None
    own = (scale if scale is not None else shift).ndim  # type: ignore[union-attr]
    yield from _of(scale, shift, normal, slopes, axes=tuple(range(1, slopes.ndim - own)))


def _of(scale: Tensor | None, shift: Tensor | None, normal: Tensor, slopes: Tensor, *, axes: tuple[int, ...]) -> Found:
    if isinstance(scale, nn.Parameter) and scale.requires_grad:
        product = normal * slopes
        yield scale, product.sum(axes) if axes else product
    if isinstance(shift, nn.Parameter) and shift.requires_grad:
        yield shift, slopes.sum(axes) if axes else slopes
