"""The networks a plan may name.

To add one: write a file with a frozen config dataclass and a `build(config, form)` function, or, for a network that
takes values alone, `build(config, input_shape, classes)`, which `_of_values` makes into the former; and add its
`ModelFactory` to `_FACTORIES`. Convention for errors: the config's `__post_init__` and `build` raise a `ValueError`
that reads "option: what is allowed", or, where the form of the input is at fault, "takes ...".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import nn

from security.errors import UsageError, did_you_mean
from shared_models import cnn, cnn1d, convnet, inception, linear, minilm, mlp, own, recurrent, resnet, transformer, vit
from shared_models.cards import card_for
from shared_models.example_form import ExampleForm
from shared_models.features.apply import model_form
from shared_models.histograms import build_counts
from shared_models.plan import Plan


@dataclass(frozen=True)
class ModelFactory:
    """A network that plans can name.

    Attributes:
        name: what a plan calls it.
        config: frozen dataclass of its options, with defaults.
        build: makes the network from its config and the form of an example.
        summary: one line for people.
    """

    name: str
    config: type[Any]
    build: Callable[[Any, ExampleForm], nn.Module]
    summary: str


def _of_values(build: Callable[[Any, tuple[int, ...], int], nn.Module]) -> Callable[[Any, ExampleForm], nn.Module]:
    def checked(config: Any, form: ExampleForm) -> nn.Module:
        if form.vocabulary is not None:
            raise ValueError("takes values, no tokens")
        return build(config, form.shape, form.classes)

    return checked


PRETRAINED = ("minilm",)
"""Networks whose weights were trained elsewhere."""

_LARGEST_EXAMPLE = 1 << 28  # values

_FACTORIES = {
    factory.name: factory
    for factory in (
        ModelFactory(
            "cnn", cnn.CnnConfig, _of_values(cnn.build), "small convolutional network for images of 8x8 to 64x64"
        ),
        ModelFactory("cnn1d", cnn1d.Cnn1dConfig, _of_values(cnn1d.build), "convolutional network for signals"),
        ModelFactory(
            "convnet",
            convnet.ConvnetConfig,
            _of_values(convnet.build),
            "plain convolutional network for images of 8x8 to 64x64",
        ),
        ModelFactory(
            "inception",
            inception.InceptionConfig,
            _of_values(inception.build),
            "inception network for images of 8x8 to 64x64",
        ),
        ModelFactory(
            "linear", linear.LinearConfig, _of_values(linear.build), "one affine layer for values of any shape"
        ),
        ModelFactory("minilm", minilm.MinilmConfig, minilm.build, "pretrained sentence encoder, with adapters (LoRA)"),
        ModelFactory("mlp", mlp.MlpConfig, _of_values(mlp.build), "multilayer perceptron for values of any shape"),
        ModelFactory(
            "recurrent",
            recurrent.RecurrentConfig,
            recurrent.build,
            "LSTM or GRU for texts, signals, language models",
        ),
        ModelFactory(
            "resnet", resnet.ResnetConfig, _of_values(resnet.build), "residual network for images of 8x8 to 64x64"
        ),
        ModelFactory(
            "transformer",
            transformer.TransformerConfig,
            transformer.build,
            "transformer for texts, signals, language models",
        ),
        ModelFactory("vit", vit.VitConfig, _of_values(vit.build), "vision transformer for images of 8x8 to 64x64"),
    )
}


def names() -> tuple[str, ...]:
    """The known networks, sorted."""
    return tuple(sorted(_FACTORIES))


def factory(name: str) -> ModelFactory:
    """Veil's network of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in _FACTORIES:
        known = (*names(), *own.bound())
        bind = "one's own is bound by --model, or in site.toml and server.toml"
        raise UsageError(f"model.name = {name!r}: unknown model; {_known(name, known)}; {bind}")
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
    if _is_own(name):
        return own.own_options(name, options)
    return _as_toml(_config(factory(name), options))


def build(name: str, options: Mapping[str, object], *, form: ExampleForm, seed: int) -> nn.Module:
    """A new network on the CPU, in training mode.

    The weights depend on the arguments only: the same seed gives the same bits, and the global random state
    is left as it was.

    Args:
        name: one of `names()`.
        options: options of the network; those left out take their defaults.
        form: of one example; the classes are the last axis of the output.
        seed: seed of the initial weights.

    Raises:
        UsageError: unknown network, wrong options, or a network that doesn't take such inputs.
    """
    if _is_own(name):
        with _seeded(seed):
            return own.build_own(name, own.own_options(name, options), form)
    chosen = factory(name)
    config = _config(chosen, options)
    with _seeded(seed):
        try:
            return chosen.build(config, form)
        except ValueError as error:
            raise _blame(error, chosen, dataclasses.asdict(config), _given(form)) from error


def build_for(plan: Plan) -> nn.Module:
    """The plan's network for the plan's data, with the initial weights of the plan's seed: see `build`.

    Raises:
        UsageError: as `build`, or the plan's own data is not fully described.
    """
    if plan.statistics is not None:  # the counts are what travels, in place of a network
        return build_counts(plan)
    return build(plan.model.name, plan.model.options, form=model_form(plan), seed=plan.seed)


def count_parameters(plan: Plan) -> int:
    """How many numbers the plan's network has, without making it: a stranger's plan may ask for any size.

    Raises:
        UsageError: as `build_for`; or an example or the network is larger than can be counted.
    """
    return sum(parameter.numel() for parameter in dry(plan).parameters())


def dry(plan: Plan) -> nn.Module:
    """The plan's network on torch's meta device: shapes and no numbers, whatever its size.

    Raises:
        UsageError: as `count_parameters`.
    """
    if plan.statistics is not None:
        with torch.device("meta"):
            return build_counts(plan)
    if _is_own(plan.model.name):
        options = own.own_options(plan.model.name, plan.model.options)
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return own.build_own(plan.model.name, options, model_form(plan))
    card, form = card_for(plan.data), model_form(plan)
    chosen = factory(plan.model.name)
    config = _config(chosen, plan.model.options)
    too_large = UsageError(f"model.name = {plan.model.name!r}: too large for examples of shape {form.shape}")
    if max(math.prod(card.input_shape), math.prod(form.shape)) > _LARGEST_EXAMPLE:
        raise too_large
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return chosen.build(config, form)
    except ValueError as error:
        raise _blame(error, chosen, dataclasses.asdict(config), _given(form)) from error
    except RuntimeError as error:  # torch can't count so far
        raise too_large from error


def _is_own(name: str) -> bool:
    if name not in own.bound():
        return False
    if name in _FACTORIES:
        raise UsageError(f"models.{name}: is one of Veil's own networks; bind another name")
    return True


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Random numbers follow from the seed inside, on the CPU, and are as before outside."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Not torch.manual_seed: that would also reseed the generators of every GPU.
        torch.default_generator.manual_seed(seed)
        yield


def _given(form: ExampleForm) -> str:
    kind = "shape" if form.vocabulary is None else f"{form.vocabulary} tokens and shape"
    return f"; the data's examples have {kind} {form.shape}"


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
