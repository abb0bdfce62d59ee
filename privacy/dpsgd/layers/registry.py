"""Which function makes the per-example gradients of which kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from torch import Tensor, nn

from privacy.dpsgd.factors import Factors

Found = Iterable[tuple[Tensor, Tensor | Factors]]
"""Trained parameters and their per-example gradients: (n, *parameter.shape), or the factors of these."""

Sampler = Callable[[nn.Module, Tensor, Tensor], Found]
"""Maps a layer, its input (n, ...) and the slopes (gradients of a summed loss by the layer's output, (n, ...)) to the
gradients of those of its own parameters that are trained."""

_SAMPLERS: dict[type[nn.Module], Sampler] = {}
_F = TypeVar("_F", bound=Callable[..., Found])


def sampler_for(*kinds: type[nn.Module]) -> Callable[[_F], _F]:
    """Register the sampler of some kinds of layers; of exactly these, as a subclass may do anything."""

    def register(sampler: _F) -> _F:
        for kind in kinds:
            _SAMPLERS[kind] = sampler
        return sampler

    return register


def find_sampler(layer: nn.Module) -> Sampler | None:
    """The sampler of a layer; None if its kind isn't known."""
    return _SAMPLERS.get(type(layer))
