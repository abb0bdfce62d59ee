"""Low-rank adapters: a frozen network learns by small products beside its linear layers (Hu et al. 2021, arXiv
2106.09685).

Only what is trained travels, is clipped, noised and charged: of a layer of n inputs and m outputs, r (n + m) numbers
in place of n m. Both factors are linear layers of their own, so that every engine makes their gradients of single
examples.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn


class LoraLinear(nn.Module):
    """W x + b + (alpha / r) B A x: `base` is frozen, A (`down`) begins random and B (`up`) at zero (section 4.1).

    Args:
        base: the layer; frozen.
        rank: r, from 1.
        alpha: what the product is scaled by, over the rank.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"a rank is at least 1, not {rank}")
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs (..., out_features) of inputs (..., in_features)."""
        added: torch.Tensor = self.base(inputs) + self.up(self.down(inputs)) * self.scale
        return added

    def merged(self) -> nn.Linear:
        """One ordinary layer that computes the same, up to rounding."""
        layer = nn.Linear(self.base.in_features, self.base.out_features, bias=self.base.bias is not None)
        with torch.no_grad():
            layer.weight.copy_(self.base.weight + self.scale * self.up.weight @ self.down.weight)
            if self.base.bias is not None:
                layer.bias.copy_(self.base.bias)
        return layer


def add_lora(model: nn.Module, targets: Collection[str], *, rank: int, alpha: float) -> int:
    """Freeze a network and give those of its linear layers adapters whose own name is a target; returns how many.

    Args:
        model: changed in place. Whatever else is to be trained is unfrozen by the caller, afterwards.
        targets: last parts of names, such as `query` and `value`.
        rank, alpha: of each adapter.

    Raises:
        ValueError: no linear layer has such a name.
    """
    model.requires_grad_(False)
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] in targets
    ]
    if not found:
        linear = {path.rpartition(".")[2] for path, module in model.named_modules() if isinstance(module, nn.Linear)}
        wanted, there = (", ".join(sorted(some)) for some in (targets, linear))
        raise ValueError(f"no linear layer is called {wanted}; there are: {there}")
    for path, module in found:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, LoraLinear(module, rank, alpha))
    return len(found)


def merge_lora(model: nn.Module) -> nn.Module:
    """The network with each adapter folded into its layer, in place: for serving and export."""
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.merged())
    return model
