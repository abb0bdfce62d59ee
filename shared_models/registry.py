"""The networks a plan may name.

To add one: write a file with a frozen config dataclass and a `build(config, input_shape, classes)`
function, and add its `ModelFactory` to `_FACTORIES`. Convention for errors: the config's `__post_init__`
and `build` raise a `ValueError` that reads "option: what is allowed", or, where the shape of the input is
at fault, "takes ...".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn

from security.errors import UsageError, did_you_mean
from shared_models import cnn, convnet, linear, mlp, resnet, vit
from shared_models.cards import card_for
from shared_models.features.apply import model_shape
from shared_models.plan import Plan


@dataclass(frozen=True)
class ModelFactory:
    """A network that plans can name.

    Attributes:
        name: what a plan calls it.
        config: frozen dataclass of its options, with defaults.
        build: makes the network from (config, input shape without the batch, number of classes).
        summary: one line for people.
    """

    name: str
    config: type[Any]
    build: Callable[[Any, tuple[int, ...], int], nn.Module]
    summary: str


_LARGEST_EXAMPLE = 1 << 28  # values

_FACTORIES = {
    factory.name: factory
    for factory in (
        ModelFactory("cnn", cnn.CnnConfig, cnn.build, "small convolutional network for images of 8x8 to 64x64"),
        ModelFactory(
            "convnet", convnet.ConvnetConfig, convnet.build, "plain convolutional network for images of 8x8 to 64x64"
        ),
        ModelFactory("linear", linear.LinearConfig, linear.build, "one affine layer for inputs of any shape"),
        ModelFactory("mlp", mlp.MlpConfig, mlp.build, "multilayer perceptron for inputs of any shape"),
        ModelFactory("resnet", resnet.ResnetConfig, resnet.build, "residual network for images of 8x8 to 64x64"),
        ModelFactory("vit", vit.VitConfig, vit.build, "vision transformer for images of 8x8 to 64x64"),
    )
}


def names() -> tuple[str, ...]:
    """The known networks, sorted."""
    return tuple(sorted(_FACTORIES))


def factory(name: str) -> ModelFactory:
    """The network of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _FACTORIES:
        raise UsageError(f"model.name = {name!r}: unknown model; {_known(name, names())}")
    return _FACTORIES[name]


def default_options(name: str) -> dict[str, object]:
    """Every option of a network with its default, as TOML values.

    Raises:
        UsageError: unknown network.
    """
    return _as_toml(factory(name).config())


def check_options(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options of a network with defaults filled in, as TOML values (a tuple is a list).

    Raises:
        UsageError: unknown network, or an option of unknown name, wrong type or impossible value.
    """
    return _as_toml(_config(factory(name), options))


def build(
    name: str, options: Mapping[str, object], *, input_shape: tuple[int, ...], classes: int, seed: int
) -> nn.Module:
    """A new network on the CPU, in training mode.

    The weights depend on the arguments only: the same seed gives the same bits, and the global random state
    is left as it was.

    Args:
        name: one of `names()`.
        options: options of the network; those left out take their defaults.
        input_shape: shape of one example, e.g. (channels, height, width).
        classes: number of classes, which is the width of the output (batch, classes).
        seed: seed of the initial weights.

    Raises:
        UsageError: unknown network, wrong options, or a network that doesn't take such inputs.
    """
    chosen = factory(name)
    config = _config(chosen, options)
    if not input_shape or min(input_shape) < 1:
        raise UsageError(f"model.name = {name!r}: the shape of an example {input_shape} must hold positive sizes")
    if classes < 2:
        raise UsageError(f"model.name = {name!r}: needs at least 2 classes, not {classes}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the generators of every GPU.
        torch.default_generator.manual_seed(seed)
        try:
            return chosen.build(config, input_shape, classes)
        except ValueError as error:
            given = f"; the data's examples have shape {input_shape}"
            raise _blame(error, chosen, dataclasses.asdict(config), given) from error


def build_for(plan: Plan) -> nn.Module:
    """The plan's network for the plan's data, with the initial weights of the plan's seed: see `build`.

    Raises:
        UsageError: as `build`, or the plan's own data is not fully described.
    """
    card = card_for(plan.data)
    return build(
        plan.model.name,
        plan.model.options,
        input_shape=model_shape(plan),
        classes=len(card.classes),
        seed=plan.seed,
    )


def count_parameters(plan: Plan) -> int:
    """How many numbers the plan's network trains, without making it: a stranger's plan may ask for any size.

    Raises:
        UsageError: as `build_for`; or an example or the network is larger than can be counted.
    """
    card, shape = card_for(plan.data), model_shape(plan)
    chosen = factory(plan.model.name)
    config = _config(chosen, plan.model.options)
    too_large = UsageError(f"model.name = {plan.model.name!r}: too large for examples of shape {shape}")
    if max(math.prod(card.input_shape), math.prod(shape)) > _LARGEST_EXAMPLE:
        raise too_large
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = chosen.build(config, shape, len(card.classes))
    except ValueError as error:
        given = f"; the data's examples have shape {shape}"
        raise _blame(error, chosen, dataclasses.asdict(config), given) from error
    except RuntimeError as error:  # torch can't count so far
        raise too_large from error
    return sum(parameter.numel() for parameter in network.parameters())


def _config(chosen: ModelFactory, options: Mapping[str, object]) -> Any:
    types = get_type_hints(chosen.config)
    typed: dict[str, object] = {}
    for key, value in options.items():
        if key not in types:
            raise UsageError(f"model.options.{key}: unknown option of {chosen.name!r}; {_known(key, tuple(types))}")
        try:
            typed[key] = _typed(value, types[key])
        except ValueError:
            raise UsageError(f"model.options.{key} = {_show(value)}: allowed: {_describe(types[key])}") from None
    try:
        return chosen.config(**typed)
    except ValueError as error:
        raise _blame(error, chosen, {**default_options(chosen.name), **options}, "") from error


def _blame(error: ValueError, chosen: ModelFactory, values: Mapping[str, object], given: str) -> UsageError:
    """The one line for an error that follows this module's convention; `given` ends it for a wrong shape."""
    key, separator, allowed = str(error).partition(": ")
    if separator and key in values:
        return UsageError(f"model.options.{key} = {_show(values[key])}: allowed: {allowed}")
    return UsageError(f"model.name = {chosen.name!r}: {error}{given}")


def _typed(value: object, annotation: Any) -> object:
    """The value as the annotated type; ValueError if it isn't one."""
    if get_origin(annotation) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_typed(item, get_args(annotation)[0]) for item in value)
    elif get_origin(annotation) is Literal:
        if isinstance(value, str) and value in get_args(annotation):
            return value
    elif annotation is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif isinstance(value, annotation) and (annotation is bool or not isinstance(value, bool)):
        return value
    raise ValueError


def _describe(annotation: Any) -> str:
    """What `_typed` takes, in words."""
    if get_origin(annotation) is tuple:
        return f"a list, each entry {_describe(get_args(annotation)[0])}"
    if get_origin(annotation) is Literal:
        return ", ".join(repr(choice) for choice in get_args(annotation))
    return {bool: "true or false", int: "a whole number", float: "a finite number", str: "a text"}[annotation]


def _as_toml(config: Any) -> dict[str, object]:
    """The config's fields as TOML gives them back, so that a plan written and read again compares equal."""
    fields: dict[str, object] = dataclasses.asdict(config)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _show(value: object) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _known(given: str, allowed: tuple[str, ...]) -> str:
    return f"{did_you_mean(given, allowed)}allowed: {', '.join(allowed)}"
