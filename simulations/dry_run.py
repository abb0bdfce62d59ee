"""A step of a plan's network by shapes alone: what it multiplies, and what its forward pass keeps for the backward one.

Nothing is computed: torch's fake tensors go through the network, its gradient included, and are counted. So a network
that fits on no machine here is counted like any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared_models.example_form import ExampleForm


@dataclass(frozen=True)
class DryStep:
    """Of some examples, forward and backward.

    Attributes:
        forward, backward: floating-point operations of matrix products, convolutions and attention; a multiplication
            with its addition is two.
        kept: bytes that the forward pass keeps for the backward pass beside the parameters, in float32.
    """

    forward: int
    backward: int
    kept: int


def dry_step(network: nn.Module, form: ExampleForm, examples: int) -> DryStep | None:
    """Count a step.

    Args:
        network: on the meta device, in training mode.
        form: of an example.
        examples: at once.

    Returns:
        The figures; None where the network asks for values on its way, which aren't there.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.autograd.graph import saved_tensors_hooks
    from torch.utils.flop_counter import FlopCounterMode

    kept: dict[int, Tensor] = {}  # a reference each, so that no number is used twice

    def keep(some: Tensor) -> Tensor:
        kept.setdefault(_storage(some), some)
        return some

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode, FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda some: some):
            # The network's own go in as they are, or as fakes; while there is a fake of a tensor, there is no second.
            own_tensors = (*network.parameters(), *network.buffers())
            fakes = [mode.from_tensor(one) for one in own_tensors]
            own = {_storage(one) for one in (*own_tensors, *fakes)}
            output = network(torch.zeros((examples, *form.shape), device="meta"))
            forward = counter.get_total_flops()
            output.float().sum().backward()
            total = counter.get_total_flops()
    except Exception:  # a stranger's network may do anything; what it can't be asked isn't known
        return None
    finally:
        network.zero_grad(set_to_none=True)
    size = sum(some.untyped_storage().nbytes() for name, some in kept.items() if name not in own)
    return DryStep(forward, total - forward, size)


def _storage(some: Tensor) -> int:
    number: int = some.untyped_storage()._cdata
    return number
