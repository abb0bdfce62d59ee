"""Per-example gradients of convolutions in one and two dimensions, and of transposed ones.

Two ways lead there, of equal results up to rounding. One convolution with a group for each example
(`torch.nn.grad.conv2d_weight`) is quick where there are several channels, its rows are a multiple of a processor's
vectors, and the input has its padding already; with few channels it is quicker to lay the windows out and multiply.
Which one is taken follows from the layer's shape alone, so that every machine makes the same sums.

A transposed convolution is the adjoint of a convolution with the same weight: its gradient is that of the convolution,
with input and slopes in each other's place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from privacy.dpsgd.layers.registry import Found, sampler_for

_VECTOR = 8  # float32 in a vector register of 256 bits

Pair = tuple[int, int]


@sampler_for(nn.Conv1d)
def conv1d_gradients(layer: nn.Conv1d, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, length): as in two dimensions, the first of them 1."""
    if layer.weight.requires_grad:
        padded = _padded(layer, inputs)[:, :, None]
        weight = layer.weight[:, :, None]
        rows = _weight_gradients(
            padded, slopes[:, :, None], weight.shape, (1, layer.stride[0]), (1, layer.dilation[0]), layer.groups
        )
        yield layer.weight, rows.view(len(rows), *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, slopes.sum(2)


@sampler_for(nn.Conv2d)
def conv2d_gradients(layer: nn.Conv2d, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, height, width)."""
    if layer.weight.requires_grad:
        yield (
            layer.weight,
            _weight_gradients(
                _padded(layer, inputs),
                slopes,
                layer.weight.shape,
                _pair(layer.stride),
                _pair(layer.dilation),
                layer.groups,
            ),
        )
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, slopes.sum((2, 3))


@sampler_for(nn.ConvTranspose1d)
def conv_transpose1d_gradients(layer: nn.ConvTranspose1d, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, length): as in two dimensions, the first of them 1."""
    if layer.weight.requires_grad:
        weight, (padding,) = layer.weight[:, :, None], _ints(layer.padding)
        strides, dilations = (1, layer.stride[0]), (1, layer.dilation[0])
        rows = _transposed_gradients(
            inputs[:, :, None], slopes[:, :, None], weight.shape, strides, dilations, (0, padding), layer.groups
        )
        yield layer.weight, rows.view(len(rows), *layer.weight.shape)
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, slopes.sum(2)


@sampler_for(nn.ConvTranspose2d)
def conv_transpose2d_gradients(layer: nn.ConvTranspose2d, inputs: Tensor, slopes: Tensor) -> Found:
    """Of `inputs` (n, channels, height, width)."""
    if layer.weight.requires_grad:
        strides, dilations, padding = _pair(layer.stride), _pair(layer.dilation), _pair(_ints(layer.padding))
        rows = _transposed_gradients(inputs, slopes, layer.weight.shape, strides, dilations, padding, layer.groups)
        yield layer.weight, rows
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, slopes.sum((2, 3))


def _transposed_gradients(
    inputs: Tensor, slopes: Tensor, shape: torch.Size, stride: Pair, dilation: Pair, padding: Pair, groups: int
) -> Tensor:
    """(n, *shape), with shape (in, out / groups, height, width)."""
    seen = [
        (places - 1) * step + spread * (side - 1) + 1
        for places, step, spread, side in zip(inputs.shape[2:], stride, dilation, shape[2:], strict=True)
    ]
    slopes = functional.pad(slopes, (padding[1], padding[1], padding[0], padding[0]))
    slopes = slopes[:, :, : seen[0], : seen[1]]  # what output_padding adds, no input has come to
    return _weight_gradients(slopes.contiguous(), inputs.contiguous(), shape, stride, dilation, groups)


def _padded(layer: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> Tensor:
    sides = layer._reversed_padding_repeated_twice  # what the layer itself pads by where its padding isn't of zeros
    if not any(sides):
        return inputs
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, sides, mode=mode)


def _weight_gradients(
    inputs: Tensor, slopes: Tensor, shape: torch.Size, stride: Pair, dilation: Pair, groups: int
) -> Tensor:
    """(n, *shape), with shape (out, in / groups, height, width), of padded inputs."""
    n, out, rows, columns = slopes.shape
    if shape[1] >= _VECTOR:
        more = -columns % _VECTOR  # columns of slope zero
        inputs = functional.pad(inputs, (0, more * stride[1])) if more else inputs
        slopes = functional.pad(slopes, (0, more)) if more else slopes
        size = torch.Size((n * out, *shape[1:]))
        spread = inputs.reshape(1, -1, *inputs.shape[2:])
        slopes = slopes.reshape(1, -1, rows, columns + more)
        found: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            spread, size, slopes, stride, 0, dilation, groups=n * groups
        )
        return found.view(n, *shape)
    windows = _windows(inputs, (rows, columns), (shape[2], shape[3]), stride, dilation)
    windows = windows.reshape(n * groups, -1, rows * columns)
    found = torch.bmm(slopes.reshape(n * groups, out // groups, rows * columns), windows.transpose(1, 2))
    return found.view(n, *shape)


def _windows(inputs: Tensor, places: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """What each element of the kernel meets: a view (n, channels, *kernel, *places)."""
    n, channels, height, width = inputs.stride()
    return inputs.as_strided(
        (*inputs.shape[:2], *kernel, *places),
        (n, channels, height * dilation[0], width * dilation[1], height * stride[0], width * stride[1]),
    )


def _ints(padding: str | tuple[int, ...]) -> tuple[int, ...]:
    assert isinstance(padding, tuple)  # transposed convolutions know no "same"
    return padding


def _pair(value: tuple[int, ...]) -> Pair:
    return value[0], value[1]
