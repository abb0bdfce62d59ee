"""Veil's private step behind Opacus' own interface, for training loops written for Opacus.

    engine = BookKeepingEngine()
    model, optimizer, loader = engine.make_private(
        module=model, optimizer=optimizer, data_loader=loader,
        noise_multiplier=1.1, max_grad_norm=1.0, loss_reduction="sum",
    )

Opacus takes the sampling rate from the loader's private length (rule 1 of the design says why that is wrong for a
claim); Veil's own trainer takes it from the plan, and doesn't come this way.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from opacus import PrivacyEngine
from opacus.grad_sample import AbstractGradSampleModule
from torch import nn
from torch.optim import Optimizer

from privacy.dpsgd.bookkeeping import BookKeeping, values_left_as_factors
from privacy.dpsgd.clipping import ClippingMode
from privacy.dpsgd.engine import check_layers, strip
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import NoiseSource, SecretNoise
from security.errors import UsageError

_MODES: dict[str, ClippingMode] = {"flat": "flat", "per_layer": "per-layer", "automatic": "automatic"}


class BookKeepingEngine(PrivacyEngine):  # type: ignore[misc]  # Opacus has no types
    """Opacus' engine with per-example gradients by book-keeping, and noise from a source of one's own.

    Args:
        noise: where the noise comes from; secret by default.
        accountant: as Opacus has it.
    """

    def __init__(self, *, noise: NoiseSource | None = None, accountant: str = "prv") -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Secure RNG turned off")  # ours is always on
            super().__init__(accountant=accountant)
        self._noise = SecretNoise() if noise is None else noise
        self._left = 0
        self._books: BookKeeping

    def _prepare_model(self, module: nn.Module, **options: Any) -> BookKeepingModule:
        if options.pop("grad_sample_mode", "hooks") != "hooks":
            raise UsageError("grad_sample_mode: book-keeping takes the place of Opacus' modes; leave it out")
        options.pop("max_grad_norm", None)
        if not options.pop("wrap_model", True):
            raise UsageError("wrap_model = False: use privacy.dpsgd.engine.private_hooks, which wraps nothing")
        self._left = values_left_as_factors(module)
        found = BookKeepingModule(module, **options)
        self._books = found.books
        return found

    def _prepare_optimizer(self, **options: Any) -> LoopOptimizer:
        inner, clipping = options["optimizer"], options.get("clipping", "flat")
        if clipping not in _MODES:
            raise UsageError(f"clipping = {clipping!r}: allowed: {', '.join(_MODES)}")
        if options.get("distributed") or options.get("noise_generator") is not None:
            raise UsageError("distributed, noise_generator: not offered; noise comes from the engine's own source")
        if not isinstance(options["max_grad_norm"], int | float):
            raise UsageError("max_grad_norm: give one norm; clipping = 'per_layer' shares it among the parameters")
        return LoopOptimizer(
            inner.original_optimizer if isinstance(inner, PrivateOptimizer) else inner,
            noise_multiplier=options["noise_multiplier"],
            clipping_norm=options["max_grad_norm"],
            expected_batch_size=options["expected_batch_size"],
            noise=self._noise,
            values_left_as_factors=self._left,
            mode=_MODES[clipping],
            books=self._books,
        )


class BookKeepingModule(AbstractGradSampleModule):  # type: ignore[misc]
    """A network with book-keeping's hooks.

    Raises:
        UsageError: a layer mixes examples or has no per-example gradients, the loss isn't summed, or examples aren't
            the first axis.
    """

    def __init__(self, m: nn.Module, *, batch_first: bool = True, loss_reduction: str = "sum") -> None:
        if loss_reduction != "sum" or not batch_first:
            raise UsageError("book-keeping needs a summed loss and the example as first axis: loss_reduction='sum'")
        check_layers(m)
        super().__init__(m, batch_first=batch_first, loss_reduction=loss_reduction)
        self.books = BookKeeping(m)

    def forbid_grad_accumulation(self) -> None:
        """Book-keeping never adds up two passes."""

    def allow_grad_accumulation(self) -> None:
        """Raises UsageError: an example that is in two passes would count twice."""
        raise UsageError("book-keeping doesn't add up passes; call optimizer.accumulate() after each")

    def add_hooks(self, **_: Any) -> None:
        """They are there from the beginning."""

    def remove_hooks(self) -> None:
        """Take them away."""
        self.books.cleanup()

    def cleanup(self) -> None:
        """Leave the network as it was found."""
        self.books.cleanup()
        strip(self._module)


class LoopOptimizer(PrivateOptimizer):
    """A step takes what the last backward pass has left, as in Opacus; nothing, after an empty batch.

    Args:
        books: of the network, which know how many examples it saw.
        options: of `PrivateOptimizer`.
    """

    def __init__(self, optimizer: Optimizer, *, books: BookKeeping, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._books = books

    @property
    def accumulated_iterations(self) -> int:
        """Passes of a step, for Opacus' accountant: one, also of an empty batch."""
        return 1

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One noisy update. Raises as `PrivateOptimizer.step` and `accumulate`."""
        if closure is None and any(getattr(p, "grad_sample", None) is not None for p in self.params):
            self.accumulate(examples=self._books.examples)
        self._is_last_step_skipped = self._check_skip_next_step()  # of a batch in parts: the update comes with the last
        if not self._is_last_step_skipped:
            super().step(closure)
