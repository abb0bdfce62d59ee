"""Per-example gradients of a layer that has no function of its own here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from privacy.dpsgd.layers.registry import Found
from security.errors import UsageError

_RANDOM = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.RReLU,
)


def unknown_layer_gradients(
    name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], slopes: Tensor
) -> tuple[Found, str]:
    """Opacus' function for the layer if it has one, else the layer is differentiated again for each example.

    Args:
        name: of the layer, for messages.
        layer: with trained parameters of its own, and whatever inside.
        inputs: it was given; tensors have the example first.
        named: it was given by name; the same for all examples.
        slopes: of its output (n, ...).

    Returns:
        The gradients, and in words how they are made.

    Raises:
        UsageError: the layer draws random numbers, which would be others if it were run again.
    """
    theirs: Callable[..., dict[nn.Parameter, Tensor]] | None = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    if theirs is not None and len(inputs) == 1 and not named:
        found = theirs(layer, [inputs[0]], slopes)
        trained = [(parameter, rows) for parameter, rows in found.items() if parameter.requires_grad]
        return trained, "by Opacus' function for it"
    return _one_by_one(name, layer, inputs, named, slopes), "one example at a time"


def _one_by_one(
    name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], slopes: Tensor
) -> list[tuple[nn.Parameter, Tensor]]:
    if any(isinstance(module, _RANDOM) and module.training for module in layer.modules()):
        raise UsageError(
            f"layer {name}, a {type(layer).__name__}, can't be trained privately: it has parameters of its own and "
            "draws random numbers; keep its parameters in a layer apart"
        )
    # Only what is the layer's own: layers inside it are seen to themselves.
    own = {key: value for key, value in layer.named_parameters(recurse=False) if value.requires_grad}
    values = {key: value.detach() for key, value in own.items()}
    places = [place for place, value in enumerate(inputs) if isinstance(value, Tensor)]

    def of_one(slope: Tensor, *examples: Tensor) -> tuple[Tensor, ...]:
        given = list(inputs)
        for place, example in zip(places, examples, strict=True):
            given[place] = example[None]

        def output(parameters: dict[str, Tensor]) -> Tensor:
            made: Tensor = functional_call(layer, parameters, tuple(given), named)
            return made[0]

        back = vjp(output, values)[1]
        found: dict[str, Tensor] = back(slope)[0]
        return tuple(found.values())

    rows = vmap(of_one)(slopes, *(inputs[place] for place in places))
    return list(zip(own.values(), rows, strict=True))
