"""Per-example gradients of a layer that has no function of its own here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

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
        inputs: it was given; each tensor, inside other things too, has the examples as its first axis.
        named: it was given by name; likewise.
        slopes: of its output (n, ...).

    Returns:
        The gradients, and in words how they are made.

    Raises:
        UsageError: the layer can't be run again for each example.
    """
    theirs: Callable[..., dict[nn.Parameter, Tensor]] | None = GradSampleModule.GRAD_SAMPLERS.get(type(layer))
    if theirs is not None and len(inputs) == 1 and not named:
        found = theirs(layer, [inputs[0]], slopes)
        trained = [(parameter, rows) for parameter, rows in found.items() if parameter.requires_grad]
        return trained, "by Opacus' function for it"
    return _one_by_one(name, layer, inputs, named, slopes), "one example at a time"


def check_unknown_layer(name: str, layer: nn.Module) -> None:
    """Refuse a layer that could not be run again.

    Raises:
        UsageError: it has random layers inside, which would draw other numbers.
    """
    known = GradSampleModule.GRAD_SAMPLERS.get(type(layer)) is not None
    if not known and any(isinstance(module, _RANDOM) and getattr(module, "p", 1) for module in layer.modules()):
        raise UsageError(
            f"{_refused(name, layer)}: it has parameters of its own and draws random numbers; keep its parameters in a "
            "layer apart"
        )


def _one_by_one(
    name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], slopes: Tensor
) -> list[tuple[Tensor, Tensor]]:
    # Only what is the layer's own: layers inside it are seen to themselves.
    inside = {id(parameter) for part in layer.children() for parameter in part.parameters()}
    own = {
        key: value
        for key, value in layer.named_parameters(recurse=False)
        if value.requires_grad and id(value) not in inside
    }
    values = {key: value.detach() for key, value in own.items()}
    given, form = tree_flatten((inputs, named))
    places = [place for place, value in enumerate(given) if isinstance(value, Tensor)]
    if any(given[place].ndim == 0 or len(given[place]) != len(slopes) for place in places):
        raise UsageError(f"{_refused(name, layer)}: it is given a tensor that hasn't the examples as its first axis")

    def of_one(slope: Tensor, *examples: Tensor) -> tuple[Tensor, ...]:
        again = list(given)
        for place, example in zip(places, examples, strict=True):
            again[place] = example[None]
        positional, by_name = tree_unflatten(again, form)

        def output(parameters: dict[str, Tensor]) -> Tensor:
            made: Tensor = functional_call(layer, parameters, positional, by_name)
            if made.shape != (1, *slopes.shape[1:]):  # something of the whole batch is kept elsewhere
                raise UsageError(f"{_refused(name, layer)}: it makes something else of one example than of a batch")
            return made[0]

        back = vjp(output, values)[1]
        found: dict[str, Tensor] = back(slope)[0]
        return tuple(found.values())

    try:
        rows = vmap(of_one)(slopes, *(given[place] for place in places))
    except (RuntimeError, NotImplementedError) as error:
        raise UsageError(
            f"{_refused(name, layer)}: it has parameters of its own and can't be differentiated for each example; keep "
            "its parameters in a layer apart"
        ) from error
    return list(zip(own.values(), rows, strict=True))


def _refused(name: str, layer: nn.Module) -> str:
    return f"layer {name}, a {type(layer).__name__}, can't be trained privately"
