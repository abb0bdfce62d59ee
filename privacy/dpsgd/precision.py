"""A network run in bfloat16, with parameters, losses, norms and sums as they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bfloat16"]
"""What a network's layers compute in."""


def outputs(model: nn.Module, inputs: Tensor, precision: Precision = "float32") -> Tensor:
    """What a network makes of inputs.

    In bfloat16 (torch's autocast) products of matrices and convolutions take half the memory, and less time on a
    processor made for it. It has the range of float32, so small slopes don't vanish, and 8 bits of precision. Such
    layers' backward pass is in bfloat16 too; gradients of single examples are made, clipped and added up in the
    parameters' own precision (Opacus' engine makes them in bfloat16, and clips and adds up likewise).

    What such layers round may follow from the size of the batch, in steps of 2^-8: a run in bfloat16 that protects
    examples claims nothing (`server.claim`).

    Args:
        model: its parameters are float32.
        inputs: on the model's device.
        precision: "float32" leaves the model as it is, whatever its precision.

    Returns:
        The model's outputs; from bfloat16 in float32 again.
    """
    if precision == "float32":
        made: Tensor = model(inputs)
        return made
    with torch.autocast(inputs.device.type, torch.bfloat16):
        made = model(inputs)
    return made.float()
