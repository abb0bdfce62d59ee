"""Per-example gradients of 2-D convolutions, whatever the layout of their input in memory.

Opacus (1.6.0, `unfold2d`) reads an input by the strides that a row-major tensor would have. Of any other ("channels
last", or images of one channel whose axis of length 1 has a stride of its own) it makes wrong gradients, in batches of
two and more: a batch of one is row-major whatever its strides say. So one example more also changed the gradient of
its neighbour, which no sensitivity allows for (rule 7).
"""

import torch
from opacus.grad_sample import register_grad_sampler
from opacus.grad_sample.conv import compute_conv_grad_sample
from torch import Tensor, nn


@register_grad_sampler(nn.Conv2d)  # type: ignore[untyped-decorator]
def convolution_gradients(layer: nn.Conv2d, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    """Opacus' own sampler, given a row-major input.

    Args:
        layer: the convolution.
        activations: its input, of shape (examples, channels, height, width).
        backprops: gradients of the loss by its output, the same shape but for the sizes.

    Returns:
        By parameter: its gradients, of shape (examples, ...).
    """
    found: dict[nn.Parameter, Tensor] = compute_conv_grad_sample(layer, [_row_major(activations[0])], backprops)
    return found


def _row_major(tensor: Tensor) -> Tensor:
    # Not `contiguous()`: it lets the strides of axes of length 1 be.
    expected = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == expected else tensor.clone(memory_format=torch.contiguous_format)
