"""Can this network be trained with per-example privacy? (Rule 7 of the design: no foreign code untested.)

DP-SGD (Abadi et al. 2016, arXiv 1607.00133) clips the gradient of each example, which bounds one record's
influence only if no example's gradient depends on the others in its batch, and if every trained parameter's
gradient is among those clipped. Both are tested here: by Opacus' list of known offenders, and by numbers,
which also finds layers that nobody has listed; with the engine that will make the gradients. It is a test on random
inputs, not a proof: it guards against mistakes, not against malice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.layers import DPGRU, DPLSTM, DPRNN
from opacus.validators import ModuleValidator
from torch import nn

from privacy.dpsgd.engine import DpEngine, private_hooks
from privacy.dpsgd.example_loss import PLAIN
from privacy.dpsgd.factors import Factors
from security.errors import UsageError
from shared_models.example_form import ExampleForm

_EXAMPLES = 4
# Of other batches: what part of each example isn't zero, and what the example is multiplied by.
_LENGTHS, _SIZES = (0.6, 0.2, 1.0, 0.4), (1.0, -100.0, 0.01, 100.0)
_SEED = 20160424
_LOW_TOKENS, _LAST_TOKENS = 1024, 32
# Float64 keeps rounding near 1e-15, so anything above these is a real dependence.
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9

_MENDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.batchnorm._BatchNorm, "mixes the examples of a batch; use GroupNorm"),
    (nn.modules.instancenorm._InstanceNorm, "keeps statistics of the data; use track_running_stats=False"),
    (nn.MultiheadAttention, "hides its weights; use Linear layers and scaled_dot_product_attention"),
    (nn.LSTM, "hides its weights; use Lstm of privacy.dpsgd.layers.recurrent"),
    (nn.GRU, "hides its weights; use Gru of privacy.dpsgd.layers.recurrent"),
)
# Exact types: a subclass may do anything.
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


def check_private_trainable(model: nn.Module, form: ExampleForm, engine: DpEngine = "bookkeeping") -> None:
    """Refuse a network that can't be trained with per-example clipping.

    All tests run on a copy, in training mode and float64 on the CPU: the network, its gradients and hooks and
    the global random state are left as they were. Parameters may be frozen, but not all.

    Args:
        model: maps (batch, *shape), floating point, to logits (batch, classes); a language model to logits (batch,
            places, classes).
        form: of one example.
        engine: what will make the gradients of single examples.

    Raises:
        UsageError: one line that names the layer or parameter and the mend.
    """
    probe = _copy(model)
    _check_known_offenders(probe)
    _check_parameters(probe, engine)
    batch = _random_batch(form)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(_SEED)
        _check_stateless(probe, batch)
        # A batch of one and a batch of four draw different dropout masks, which would look like a dependence.
        # The masks don't depend on the data, so dropout is switched off for the comparison.
        for module in probe.modules():
            if type(module) in _DROPOUT:
                module.eval()
        _check_independent(probe, batch)
        _check_signs(probe, batch)
        for some in batch.variants():
            _check_per_example_gradients(probe, some, engine)


@dataclass(frozen=True)
class _Batch:
    """Examples (n, *shape) of a form, and their labels (n,) or (n, places)."""

    inputs: torch.Tensor
    labels: torch.Tensor
    form: ExampleForm

    def __len__(self) -> int:
        return len(self.labels)

    def alone(self, example: int) -> _Batch:
        """The batch that holds this example only."""
        one = slice(example, example + 1)
        return _Batch(self.inputs[one], self.labels[one], self.form)

    def variants(self) -> Iterator[_Batch]:
        """This batch, and others that a network may treat otherwise: it might sort by length, mask zeros, or choose."""
        yield self
        flat = self.inputs.flatten(1)
        lengths = torch.tensor(_LENGTHS) * flat.shape[1]
        cut = torch.where(torch.arange(flat.shape[1]) < lengths[:, None], flat, 0.0)
        if self.form.vocabulary is None:
            cut *= torch.tensor(_SIZES)[:, None]
        mixed = cut.to(flat.dtype).view_as(self.inputs)
        yield _Batch(mixed, self.labels, self.form)
        # Another order and number, and zeros at the other end.
        turned = cut.flip(1).to(flat.dtype).view_as(self.inputs).flip(0)[1:]
        yield _Batch(turned, self.labels.flip(0)[1:], self.form)

    def crowds(self, example: int) -> Iterator[_Batch]:
        """The batch with every example but this one replaced: by values of up to 100 standard deviations, where exp()
        is still finite, or by other tokens; and by zeros, which are padding."""
        vocabulary = self.form.vocabulary
        others = (
            (100 * self.inputs, -100 * self.inputs)
            if vocabulary is None
            else (vocabulary - 1 - self.inputs, (self.inputs + 1) % vocabulary)
        )
        for other in (*others, torch.zeros_like(self.inputs)):
            inputs = other.clone()
            inputs[example] = self.inputs[example]
            yield _Batch(inputs, self.labels, self.form)

    def sweeps(self) -> Iterator[_Batch]:
        """The first example among others that hold, over all of these batches, the tokens that a network may take for
        a sign: the low ones, where marks of beginning and end are, and the last ones."""
        vocabulary = self.form.vocabulary
        if vocabulary is None:
            return
        signs = torch.tensor(
            sorted({*range(min(vocabulary, _LOW_TOKENS)), *range(max(0, vocabulary - _LAST_TOKENS), vocabulary)})
        )
        room = (len(self) - 1) * self.form.shape[0]
        for some in torch.split(signs, room):
            inputs = self.inputs.clone()
            inputs[1:] = torch.nn.functional.pad(some, (0, room - len(some))).view(len(self) - 1, -1).to(inputs.dtype)
            yield _Batch(inputs, self.labels, self.form)


def _random_batch(form: ExampleForm) -> _Batch:
    generator = torch.Generator().manual_seed(_SEED)
    shape = (_EXAMPLES, *form.shape)
    inputs = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        if form.vocabulary is None
        else torch.randint(1, form.vocabulary, shape, generator=generator).double()
    )
    labels = (
        torch.randint(1, form.classes, shape, generator=generator)
        if form.at_each_place
        else torch.arange(_EXAMPLES) % form.classes
    )
    return _Batch(inputs, labels, form)


@dataclass(frozen=True)
class _Outcome:
    """One example's loss and its gradient by parameter; None for a parameter that has no part in the loss."""

    loss: torch.Tensor
    gradients: dict[str, torch.Tensor | None]

    def agrees(self, other: _Outcome) -> bool:
        """Whether both are the same up to rounding."""
        return _close(self.loss, other.loss) and all(
            _close(gradient, other.gradients[name]) for name, gradient in self.gradients.items()
        )


# --- the checks ---------------------------------------------------------------------------------------------


def _check_known_offenders(model: nn.Module) -> None:
    """Layers that Opacus refuses; also those it would skip: subclasses, and layers with nothing to train."""
    for path, module in model.named_modules():
        validators = ModuleValidator.VALIDATORS
        validate = next((validators[kind] for kind in type(module).__mro__ if kind in validators), None)
        errors = validate(module) if validate else []
        if errors:
            mend = next((text for kind, text in _MENDS if isinstance(module, kind)), _first_sentence(errors[0]))
            raise UsageError(f"{_layer(model, path)} {mend}")


def _check_parameters(model: nn.Module, engine: DpEngine) -> None:
    """There is something to train; for Opacus' hooks, in layers whose per-example gradients it knows."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(f"the model ({type(model).__name__}) has no parameter to train")
    if engine == "bookkeeping":
        return
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.requires_grad and type(module) not in (*GradSampleModule.GRAD_SAMPLERS, DPRNN, DPLSTM, DPGRU):
                raise UsageError(
                    f"parameter {name!r} of {_layer(model, path)} has no per-example gradients; "
                    "make it the weight of a supported layer, such as Linear, Conv2d or Embedding, or set "
                    "training.dp_engine = 'bookkeeping'"
                )


def _check_stateless(model: nn.Module, batch: _Batch) -> None:
    """A forward pass in training mode changes no buffer or weight: data would leave through it unclipped."""
    before = {name: value.detach().clone() for name, value in _tensors(model)}
    _logits(model, batch)
    after = dict(_tensors(model))
    for name in {**before, **after}:
        if name not in before or name not in after or not torch.equal(before[name], after[name]):
            path, _, own = name.rpartition(".")
            raise UsageError(
                f"{_layer(model, path)} changes {own!r} in its forward pass, which carries data past the "
                "clipping; keep no running statistics"
            )


def _check_independent(model: nn.Module, batch: _Batch) -> None:
    """No example's loss or gradient depends on its neighbours, nor on batches seen before."""
    for example in range(len(batch)):
        alone = _outcome(model, batch.alone(example), 0)
        if not torch.isfinite(alone.loss):
            raise UsageError("the model's loss is not finite on random inputs")
        if not alone.agrees(_outcome(model, batch.alone(example), 0)):
            raise UsageError(
                "the model gives another loss or gradient each time it sees the same example; "
                "draw random numbers by nn.Dropout only, and keep nothing from one forward pass to the next"
            )
        for crowd in batch.crowds(example):
            among = _outcome(model, crowd, example)
            if not alone.agrees(_outcome(model, batch.alone(example), 0)):
                raise UsageError("the model remembers earlier batches; keep nothing from one forward pass to the next")
            if not alone.agrees(among):
                culprit = _mixing_layer(model, batch.alone(example), crowd, example)
                raise UsageError(
                    f"{culprit} mixes the examples of a batch: the loss or gradient of one changes with the "
                    "others; compute on each example by itself"
                )


def _check_signs(model: nn.Module, batch: _Batch) -> None:
    """No example's logits depend on single tokens of its neighbours."""
    with torch.no_grad():
        alone = _logits(model, batch.alone(0))[0]
        for crowd in batch.sweeps():
            if not _close(alone, _logits(model, crowd)[0]):
                culprit = _mixing_layer(model, batch.alone(0), crowd, 0)
                raise UsageError(
                    f"{culprit} mixes the examples of a batch: the logits of one "
                    "change with the tokens of others; compute on each example by itself"
                )


def _check_per_example_gradients(model: nn.Module, batch: _Batch, engine: DpEngine) -> None:
    """The engine gives each parameter, for each example, the gradient that the example has alone."""
    outcomes = [_outcome(model, batch.alone(example), 0) for example in range(len(batch))]
    found = _hook_gradients(model, batch, engine)
    for name in found:
        alone = [outcome.gradients[name] for outcome in outcomes]
        if any(gradient is None for gradient in alone):
            raise UsageError(
                f"parameter {name!r} is not used by every example; use it in each forward pass or remove it"
            )
        expected = torch.stack([gradient for gradient in alone if gradient is not None])
        if not _close(expected, found[name]):
            raise UsageError(
                f"parameter {name!r} gets wrong per-example gradients, or none, from its layer's hooks; "
                "use it only by calling its layer, with the batch as first dimension"
            )


# --- helpers ------------------------------------------------------------------------------------------------


def _copy(model: nn.Module) -> nn.Module:
    """An independent copy in training mode, in float64 on the CPU."""
    try:
        return copy.deepcopy(model).to("cpu", torch.float64).train()
    except Exception as error:
        raise UsageError(f"the model ({type(model).__name__}) can't be copied: {_first_line(error)}") from error


@contextmanager
def _blaming_the_model(what: str) -> Iterator[None]:
    """Turn whatever the model's own code raises into one line."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"the model fails in {what}: {type(error).__name__}: {_first_line(error)}") from error


def _logits(model: nn.Module, batch: _Batch) -> torch.Tensor:
    with _blaming_the_model(f"a forward pass on a batch of shape {tuple(batch.inputs.shape)}"):
        logits: Any = model(batch.inputs.clone())
    places = batch.form.shape if batch.form.at_each_place else ()
    wanted = (len(batch), *places, batch.form.classes)
    if not isinstance(logits, torch.Tensor) or logits.shape != wanted:
        given = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(
            f"the model gives {given} for a batch of shape {tuple(batch.inputs.shape)}, not logits {wanted}"
        )
    return logits


def _outcome(model: nn.Module, batch: _Batch, example: int) -> _Outcome:
    """The loss of one example of the batch, and that loss's gradient."""
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    loss = PLAIN.of_each(_logits(model, batch), batch.labels)[example]
    if not loss.requires_grad:
        return _Outcome(loss, dict.fromkeys(parameters))
    with _blaming_the_model("a backward pass"):
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = tuple(one.to_dense() if one is not None and one.is_sparse else one for one in gradients)
    return _Outcome(loss.detach(), dict(zip(parameters, gradients, strict=True)))


def _hook_gradients(model: nn.Module, batch: _Batch, engine: DpEngine) -> dict[str, torch.Tensor | None]:
    """Per-example gradients (n, *parameter) by trained parameter, from the engine's hooks."""
    with _blaming_the_model("per-example gradients"), private_hooks(model, engine):
        loss = PLAIN(_logits(model, batch), batch.labels)
        if loss.requires_grad:
            torch.autograd.backward(loss)
        trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
        return {name: _rows(getattr(parameter, "grad_sample", None)) for name, parameter in trained.items()}


def _rows(found: object) -> torch.Tensor | None:
    if isinstance(found, Factors):
        return found.rows()
    return found if isinstance(found, torch.Tensor) else None


def _mixing_layer(model: nn.Module, alone: _Batch, among: _Batch, example: int) -> str:
    """The innermost layer whose output for the example differs from alone to among, as far as outputs show."""
    outputs = zip(_layer_outputs(model, alone, 0), _layer_outputs(model, among, example), strict=False)
    for (path, output), (_, other) in outputs:
        if output is not None and other is not None and not _close(output, other):
            return _layer(model, path)
    return "the model"


def _layer_outputs(model: nn.Module, batch: _Batch, example: int) -> list[tuple[str, torch.Tensor | None]]:
    """What each layer gives for one example, inner layers first; None where the batch isn't in front."""
    outputs: list[tuple[str, torch.Tensor | None]] = []

    def record(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shown = isinstance(output, torch.Tensor) and output.dim() > 0 and len(output) == len(batch)
            outputs.append((path, output[example].detach().clone() if shown else None))

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in model.named_modules()]
    _logits(model, batch)
    for handle in handles:
        handle.remove()
    return outputs


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _close(one: torch.Tensor | None, other: torch.Tensor | list[torch.Tensor] | None) -> bool:
    if one is None or other is None:
        return one is other
    return (
        isinstance(other, torch.Tensor)
        and one.shape == other.shape
        and torch.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE)
    )


def _layer(model: nn.Module, path: str) -> str:
    kind = type(model.get_submodule(path)).__name__
    return f"layer {path!r} ({kind})" if path else f"the model ({kind})"


def _first_sentence(error: Exception) -> str:
    return _first_line(error).split(". ")[0]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0]
