"""Per-example gradients by one backward pass that computes no gradient of a parameter.

What Bu et al. 2023 call book-keeping ("Differentially Private Optimization on Large Model at Small Cost",
arXiv 2210.00038): while the network runs, its parameters ask for no gradient, so that autograd makes none of their
sums, which a private step could not use. Each trained layer's input is kept, and a hook on its output is given the
output's gradient; of the two the layer's per-example gradients are made (`privacy.dpsgd.layers`). What lies below the
first trained layer has no backward pass at all.

Beside Opacus' hooks (`privacy.dpsgd.engine`) it makes the same gradients, and leaves them in the same place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

import privacy.dpsgd.layers  # noqa: F401 - registers the kinds of layers
from privacy.dpsgd.factors import Factors
from privacy.dpsgd.layers.linear import LARGE
from privacy.dpsgd.layers.registry import Found, find_sampler
from privacy.dpsgd.layers.tapped import Gradients, Tapped
from privacy.dpsgd.unknown_layer import check_unknown_layer, unknown_layer_gradients
from security.errors import UsageError

_log = logging.getLogger(__name__)

_AT_WORK: ContextVar[BookKeeping | None] = ContextVar("book-keeping", default=None)

OWN_ATTRIBUTE = "book_keeping_run"
"""On a parameter with gradients: which run of the network they are of."""


def values_left_as_factors(model: nn.Module) -> int:
    """How many trained values a network has whose gradients may come as factors: known before any data is seen."""
    return sum(
        layer.weight.numel()
        for layer in model.modules()
        if type(layer) is nn.Linear and layer.weight.requires_grad and layer.weight.numel() >= LARGE
    )


def at_work() -> BookKeeping | None:
    """The hooks on the network that is being run, if there are any."""
    return _AT_WORK.get()


class BookKeeping:
    """Hooks on a network that leave per-example gradients in `grad_sample` of each trained parameter.

    They work while the network itself (not a part of it) is run in training mode with gradients enabled. The loss must
    be summed over the examples, and the first axis of every layer's input be the example.

    Args:
        model: its layers are checked before (`privacy.dpsgd.engine.check_layers`).
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._trained: list[nn.Parameter] = []
        self._running = self._again = False
        self._removed = False
        self._run = self._examples = 0
        self._anchors: dict[torch.device, Tensor] = {}
        self._fallbacks: set[type[nn.Module]] = set()
        self._at_work = False
        self._given: set[int] = set()
        self._repeated: set[nn.Module] = set()
        self._handles = [model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True)]
        self._tapped: list[Tapped] = []
        for name, layer in model.named_modules():
            if not _trained_by_itself(layer):
                continue
            if isinstance(layer, Tapped):
                layer.tap = partial(self._tap, name or "(the model)")
                self._tapped.append(layer)
            else:
                if find_sampler(layer) is None:
                    check_unknown_layer(name or "(the model)", layer)
                hook = partial(self._ran, name or "(the model)")
                self._handles.append(layer.register_forward_hook(hook, with_kwargs=True))
        # Last, so that the network's own parameters are seen to before its run is over.
        self._handles.append(model.register_forward_hook(self._end, always_call=True))

    @property
    def examples(self) -> int:
        """How many the last run saw."""
        return self._examples

    def cleanup(self) -> None:
        """Leave the network as it was found, but for gradients made; backward passes that are to come leave none."""
        self._removed = True
        for handle in self._handles:
            handle.remove()
        for layer in self._tapped:
            layer.tap = None
        self._handles, self._tapped = [], []
        self._switch_on()

    def _begin(self, model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._at_work:  # a layer is run again, to be differentiated
            return
        self._switch_on()  # after a run that was cut off
        if not (model.training and torch.is_grad_enabled()):
            return
        self._run += 1
        self._running = True
        _AT_WORK.set(self)
        tensors = [value for value in (*inputs, *named.values()) if isinstance(value, Tensor) and value.ndim]
        self._examples = len(tensors[0]) if tensors else 1
        self._given = {value.untyped_storage().data_ptr() for value in tensors}
        self._repeated = set()
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            parameter.requires_grad_(False)

    def _end(self, _: nn.Module, __: object, ___: object) -> None:
        if not self._at_work:
            self._switch_on()

    def _switch_on(self) -> None:
        # The graph is made by now, and knows of no parameter: what asks for gradients from here on changes nothing.
        self._running = False
        _AT_WORK.set(None)
        for parameter in self._trained:
            parameter.requires_grad_(True)
        self._trained = []

    @contextmanager
    def run_again(self) -> Iterator[None]:
        """Inside, a part of the network is run a second time, in the backward pass: as the first time, but nobody
        watches, for the gradients come to what was made then."""
        trained = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        self._again = True
        try:
            yield
        finally:
            self._again = False
            for parameter in trained:
                parameter.requires_grad_(True)

    def _ran(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], made: Any) -> Any:
        """A layer was run: watch what it made."""
        if not (self._running or self._again) or not torch.is_grad_enabled():
            return None
        given = (*inputs, *named.values())
        if len(given) == 1:
            inputs, named = given, {}
        if not isinstance(made, Tensor):
            raise UsageError(
                f"layer {name}, a {type(layer).__name__}, can't be trained privately: it has parameters of its own and "
                f"returns a {type(made).__name__}, not a tensor"
            )
        if any(made is value for value in given):
            made = made.clone()
        if layer in self._repeated and not self._again:
            raise UsageError(
                f"layer {name}, a {type(layer).__name__}, can't be trained privately: it is run for one example after "
                "the other, or once for the batch and once again; run it on all examples at once"
            )
        if type(layer) is nn.Embedding and self._is_for_all(inputs, made):
            # Made once for the whole batch, as embeddings of positions often are: given to each example by itself.
            self._repeated.add(layer)
            inputs, made = (_expanded(inputs[0], self._examples),), _expanded(made, self._examples)
        call = _Call(name, layer, inputs, named)
        sampler = find_sampler(layer) if call.plain else None
        return self._watched(
            made, call, partial(self._fallback, call) if sampler is None else partial(call.by, sampler)
        )

    def _tap(self, name: str, made: Tensor, gradients: Gradients) -> Tensor:
        if not (self._running or self._again) or not torch.is_grad_enabled():
            return made
        return self._watched(made, _Call(name, None, (), {}), gradients)

    def _is_for_all(self, inputs: tuple[Any, ...], made: Tensor) -> bool:
        """Whether a batch of one was made of numbers that aren't (a part of) what the network was given."""
        if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or not len(inputs[0]) == len(made) == 1:
            return False
        return self._examples > 1 and inputs[0].untyped_storage().data_ptr() not in self._given

    def _watched(self, made: Tensor, call: _Call, gradients: Gradients) -> Tensor:
        watched = made
        if not made.requires_grad:  # nothing below is trained: the backward pass ends here
            if made._is_view():
                made = made.clone()
            watched = _Tap.apply(made, self._anchor(made.device))  # type: ignore[no-untyped-call]
        if not self._again:
            watched.register_hook(partial(self._came_back, self._run, call, gradients))  # type: ignore[no-untyped-call]
        return watched

    def _anchor(self, device: torch.device) -> Tensor:
        if device not in self._anchors:
            self._anchors[device] = torch.zeros((), device=device, requires_grad=True)
        return self._anchors[device]

    def _came_back(self, run: int, call: _Call, gradients: Gradients, slopes: Tensor) -> None:
        if self._removed:
            return
        call.check_unchanged()
        self._at_work = True
        try:
            with torch.no_grad():
                for parameter, found in gradients(slopes):
                    _add(parameter, found, run)
        finally:
            self._at_work = False

    def _fallback(self, call: _Call, slopes: Tensor) -> Found:
        assert call.layer is not None
        inputs, named, slopes = call.precise((call.inputs, call.named, slopes))
        found, how = unknown_layer_gradients(call.name, call.layer, inputs, named, slopes)
        if type(call.layer) not in self._fallbacks:
            self._fallbacks.add(type(call.layer))
            _log.info("layer %s: gradients of a %s are made %s, slowly", call.name, type(call.layer).__name__, how)
        return found


@dataclass(frozen=True, eq=False)
class _Call:
    """One use of a layer."""

    name: str
    layer: nn.Module | None
    inputs: tuple[Any, ...]
    named: dict[str, Any]
    _versions: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("inputs", "named"):
            kept = tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, getattr(self, name))
            object.__setattr__(self, name, kept)
        object.__setattr__(self, "_versions", self._versions_now())

    @property
    def plain(self) -> bool:
        """Whether the layer was given one tensor."""
        return len(self.inputs) == 1 and not self.named and isinstance(self.inputs[0], Tensor)

    def by(self, sampler: Callable[[nn.Module, Tensor, Tensor], Found], slopes: Tensor) -> Found:
        assert self.layer is not None
        if not len(slopes):  # kernels need not know what to do without examples
            return [(parameter, slopes.new_zeros(0, *parameter.shape)) for parameter in self._own()]
        return sampler(self.layer, *self.precise((self.inputs[0], slopes)))

    def precise(self, values: Any) -> Any:
        """The same with tensors in the precision of the layer's parameters: under autocast it computes in bfloat16, but
        gradients are made in their own."""
        precision = self._own()[0].dtype

        def cast(value: Any) -> Any:
            return value.to(precision) if isinstance(value, Tensor) and value.is_floating_point() else value

        return tree_map(cast, values)

    def _own(self) -> list[nn.Parameter]:
        assert self.layer is not None
        return [parameter for parameter in self.layer.parameters(recurse=False) if parameter.requires_grad]

    def check_unchanged(self) -> None:
        """Raises RuntimeError if the layer's input is no longer what it was given: autograd doesn't see it here."""
        if self._versions != self._versions_now():
            raise RuntimeError(f"layer {self.name}: its input was changed in place after it was used")

    def _versions_now(self) -> tuple[int, ...]:
        given = (value for value in tree_leaves((self.inputs, self.named)) if isinstance(value, Tensor))
        return tuple(value._version for value in given if not value.is_inference())


class _Tap(torch.autograd.Function):
    """Lets the backward pass come as far as this tensor, though nothing below asks for it."""

    @staticmethod
    def forward(ctx: Any, made: Tensor, _: Tensor) -> Tensor:
        ctx.mark_dirty(made)
        return made

    @staticmethod
    def backward(_: Any, *__: Tensor) -> tuple[None, None]:
        return None, None


def _expanded(tensor: Tensor, times: int) -> Tensor:
    return tensor.expand(times, *tensor.shape[1:])


def _trained_by_itself(layer: nn.Module) -> bool:
    """Whether a layer has trained parameters that no layer inside it holds too (as Opacus' DPLSTM shows those of its
    cells as its own)."""
    inside = {id(parameter) for part in layer.children() for parameter in part.parameters()}
    return any(parameter.requires_grad and id(parameter) not in inside for parameter in layer.parameters(recurse=False))


def _add(parameter: Tensor, found: Tensor | Factors, run: int) -> None:
    """Leave gradients on a parameter, beside those of the same run: of a layer used twice, or of tied weights."""
    before = getattr(parameter, "grad_sample", None)
    if before is None:
        setattr(parameter, OWN_ATTRIBUTE, run)
        total: Any = found
    elif isinstance(before, list) or getattr(parameter, OWN_ATTRIBUTE, None) != run:
        total = [before, found]  # as Opacus tells that there were two passes
    elif isinstance(before, Factors) and isinstance(found, Factors):
        total = before.joined(found)
    else:
        rows, more = (value.rows() if isinstance(value, Factors) else value for value in (before, found))
        total = rows + more
    parameter.grad_sample = total  # type: ignore[attr-defined]
