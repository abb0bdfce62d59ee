"""Per-example gradients for a model, only while they are needed, and the private step made of them.

Opacus' hooks (one backward pass, a gradient sampler for each kind of layer) are attached without wrapping the
model: its parameters keep their names, and a federated round begins and ends with an ordinary module.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from opacus.grad_sample import prepare_module
from opacus.validators import ModuleValidator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import privacy.dpsgd.convolution  # noqa: F401 - its sampler takes the place of Opacus' own
from privacy.dpsgd.optimizer import PrivateOptimizer
from security.errors import UsageError

_ON_PARAMETERS = ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")
_ON_MODULES = ("autograd_grad_sample_hooks", "activations", "max_batch_len", "ft_compute_sample_grad")


@contextmanager
def private_hooks(model: nn.Module) -> Iterator[None]:
    """Inside, a backward pass leaves per-example gradients in the `grad_sample` of each trainable parameter.

    The loss must be *summed* over the examples, and the first axis of every layer's input be the example.
    Afterwards, whatever happened, nothing is left on the model: no hook, no activation, no gradient.

    Args:
        model: in training mode when it is run.

    Raises:
        UsageError: if a layer mixes the examples of a batch, or has no per-example gradients.
        RuntimeError: if the model, or a part of it, is inside such a context already.
    """
    check_layers(model)
    if any(hasattr(module, "autograd_grad_sample_hooks") for module in model.modules()):
        raise RuntimeError("the model has private hooks already: leave that context first")
    hooks = None
    try:
        hooks = prepare_module(model, "hooks", wrap_model=False, loss_reduction="sum", strict=True)
        with warnings.catch_warnings():
            # The hooks read gradients of outputs; that inputs need none is as it should be.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        if hooks is not None:
            hooks.cleanup()
        _strip(model)


def private_gradient_step(
    model: nn.Module,
    optimizer: PrivateOptimizer,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    microbatches: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """One private step, inside `private_hooks(model)`. It returns no loss: that would be private, and unnoised.

    Args:
        model: maps inputs of shape (examples, ...) to outputs.
        optimizer: over the trainable parameters of `model`.
        loss_fn: of (outputs, targets), summed over examples; in a mean, each would weigh on the others.
        microbatches: (inputs, targets), together one Poisson batch with each example once; none if it is empty.

    Raises:
        UsageError: if the loss is a module that does not sum.
        RuntimeError: if the model is in evaluation mode, or examples and gradients disagree in number.
    """
    if getattr(loss_fn, "reduction", "sum") != "sum":
        raise UsageError(f"a private step needs a summed loss: give {type(loss_fn).__name__} reduction='sum'")
    if not model.training:
        raise RuntimeError("in evaluation mode there are no per-example gradients: call model.train() first")
    for inputs, targets in microbatches:
        if len(targets):
            torch.autograd.backward(loss_fn(model(inputs), targets))
            optimizer.accumulate(examples=len(targets))
    optimizer.step()


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
                "layers for nn.MultiheadAttention, and opacus.layers for nn.LSTM and nn.GRU"
            )


def _strip(model: nn.Module) -> None:
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
