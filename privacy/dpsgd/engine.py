"""Per-example gradients for a model, only while they are needed, and the private step made of them.

Hooks are attached without wrapping the model: its parameters keep their names, and a federated round begins and ends
with an ordinary module. Two engines make the same gradients: Veil's own (`privacy.dpsgd.bookkeeping`), and Opacus'
hooks (a backward pass that also makes the sums that nobody needs, and a gradient sampler for each kind of layer).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from opacus.grad_sample import GradSampleHooks, prepare_module
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import privacy.dpsgd.opacus_convolution  # noqa: F401 - its sampler takes the place of Opacus' own
from privacy.dpsgd.bookkeeping import OWN_ATTRIBUTE, BookKeeping
from privacy.dpsgd.bookkeeping import values_left_as_factors as book_keeping_factors
from privacy.dpsgd.copies import join_copies
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.dpsgd.planted import PlantedGradients
from privacy.dpsgd.precision import Precision, outputs
from security.errors import UsageError

DpEngine = Literal["bookkeeping", "opacus"]
"""What makes the gradients of single examples: Veil's own engine, or Opacus' hooks."""

_ON_PARAMETERS = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample", OWN_ATTRIBUTE)
_MOST_VALUES, _LEAST_EXAMPLES = 18 << 18, 8  # gradients at once: 18 MiB in float32, unless eight examples need more
_MARK = "_veil_private_hooks"
_ON_MODULES = (_MARK, "autograd_grad_sample_hooks", "activations", "max_batch_len", "ft_compute_sample_grad")


@contextmanager
def private_hooks(model: nn.Module, engine: DpEngine = "bookkeeping") -> Iterator[None]:
    """Inside, a backward pass leaves per-example gradients in the `grad_sample` of each trainable parameter.

    The loss must be *summed* over the examples, and the first axis of every layer's input be the example.
    Afterwards, whatever happened, nothing is left on the model: no hook, no activation, no gradient.

    Args:
        model: in training mode when it is run.
        engine: what makes them.

    Raises:
        UsageError: if a layer mixes the examples of a batch, or has no per-example gradients.
        RuntimeError: if the model, or a part of it, is inside such a context already.
    """
    check_layers(model)
    if any(hasattr(module, _MARK) or hasattr(module, "autograd_grad_sample_hooks") for module in model.modules()):
        raise RuntimeError("the model has private hooks already: leave that context first")
    hooks: BookKeeping | GradSampleHooks | None = None
    try:
        for module in model.modules():
            setattr(module, _MARK, True)
        if engine == "bookkeeping":
            hooks = BookKeeping(model)
        else:
            hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", strict=True)
        with warnings.catch_warnings():
            # The hooks read gradients of outputs; that inputs need none is as it should be.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        strip(model)


def values_left_as_factors(model: nn.Module, engine: DpEngine = "bookkeeping") -> int:
    """How many trained values an engine may give factors of (`privacy.dpsgd.factors`), whatever the data."""
    return book_keeping_factors(model) if engine == "bookkeeping" else 0


def private_gradient_step(
    model: nn.Module,
    optimizer: PrivateOptimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    microbatches: Iterable[tuple[Tensor, Tensor]],
    *,
    precision: Precision = "float32",
    copies: int = 1,
    planted: PlantedGradients | None = None,
) -> None:
    """One private step, inside `private_hooks(model)`. It returns no loss: that would be private, and unnoised.

    Args:
        model: maps inputs of shape (examples, ...) to outputs.
        optimizer: over the trainable parameters of `model`.
        loss_fn: of (outputs, targets), summed over examples; in a mean, each would weigh on the others.
        microbatches: (inputs, targets), together one Poisson batch with each example once; none if it is empty.
        precision: what the model's layers compute in.
        copies: of each record that stand beside each other in a batch (`privacy.dpsgd.copies`), and count as one.
        planted: gradients of an auditor's, each as that of one more example.

    Raises:
        UsageError: if the loss is a module that does not sum.
        RuntimeError: if the model is in evaluation mode, or examples and gradients disagree in number.
    """
    at_once = max(1, _examples_at_once(optimizer) // copies)
    if getattr(loss_fn, "reduction", "sum") != "sum":
        raise UsageError(f"a private step needs a summed loss: give {type(loss_fn).__name__} reduction='sum'")
    if not model.training:
        raise RuntimeError("in evaluation mode there are no per-example gradients: call model.train() first")
    for microbatch in microbatches:
        records = -(-len(microbatch[1]) // copies)
        parts = -(-records // at_once)
        if not parts:
            continue
        for inputs, targets in zip(*(_split(part, parts, copies) for part in microbatch), strict=True):
            torch.autograd.backward(loss_fn(outputs(model, inputs, precision), targets) / copies)
            join_copies(optimizer.params, copies)
            optimizer.accumulate(examples=len(targets) // copies)
    if planted is not None and len(planted):
        optimizer.accumulate_planted(planted)
    optimizer.step()


def _split(batch: Tensor, parts: int, copies: int) -> tuple[Tensor, ...]:
    """A batch in parts of whole records."""
    if copies == 1:
        return torch.tensor_split(batch, parts)
    return tuple(part.flatten(0, 1) for part in torch.tensor_split(batch.reshape(-1, copies, *batch.shape[1:]), parts))


def _examples_at_once(optimizer: PrivateOptimizer) -> int:
    """As many whose gradients stay near the processor, and within memory however large a batch is."""
    return max(_LEAST_EXAMPLES, _MOST_VALUES // max(1, optimizer.values_as_rows))


def check_layers(model: nn.Module) -> None:
    """Refuse a network that has no gradient of an example alone.

    Raises:
        UsageError: a layer mixes the examples of a batch, or hides gradients.
    """
    for name, module in model.named_modules():
        trainable = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        refuses = ModuleValidator.VALIDATORS.get(type(module), lambda _: [])
        has_buffers = any(True for _ in module.buffers())
        mixes = isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats)
        if mixes or (trainable and (has_buffers or refuses(module))):
            raise UsageError(
                f"layer {name or '(the model)'}, a {type(module).__name__}, can't be trained privately: it mixes "
                "examples, keeps buffers or hides gradients; use GroupNorm or LayerNorm for BatchNorm, Linear "
                "layers for nn.MultiheadAttention, and privacy.dpsgd.layers.recurrent for nn.LSTM and nn.GRU"
            )
        if trainable and (found := _hidden_dependence(module)):
            raise UsageError(
                f"layer {name or '(the model)'}, a {type(module).__name__}, can't be trained privately: {found}"
            )


def _hidden_dependence(module: nn.Module) -> str | None:
    """Options under which a layer changes with what it sees, or gradients of single examples aren't known."""
    if isinstance(module, nn.EmbeddingBag):
        return "use nn.Embedding and a mean"
    if isinstance(module, nn.Embedding) and (module.max_norm is not None or module.scale_grad_by_freq):
        return "with max_norm or scale_grad_by_freq it depends on the words of the whole batch; leave them out"
    if isinstance(module, nn.Conv3d) and module.padding_mode != "zeros":
        return f"padding_mode = '{module.padding_mode}'; allowed: zeros"
    return None


def strip(model: nn.Module) -> None:
    """Remove what Opacus leaves behind, private activations included, even if it failed half-way."""
    for module in model.modules():
        for handle in vars(module).get("autograd_grad_sample_hooks", ()):
            handle.remove()
        for name in _ON_MODULES:
            vars(module).pop(name, None)
    for parameter in model.parameters():
        parameter.grad = None
        for name in _ON_PARAMETERS:
            vars(parameter).pop(name, None)
