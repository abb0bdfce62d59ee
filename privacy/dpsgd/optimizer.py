"""The private step: clip each example's gradient, sum, add noise, divide by a public number.

The update is (sum of clipped + sigma C xi) / N (Abadi et al. 2016, arXiv 1607.00133, algorithm 1), with xi
standard normal, C the clipping norm, sigma the noise multiplier, and N the *public* expected batch size, never
the size of the batch that was drawn (rule 1).

Sum and noise are whole numbers of steps of a grid (rule 9, `privacy.release_grid`): what is released is the Gaussian
mechanism with noise multiplier sigma, rounded. Floats are made of it afterwards.
"""

import math
from collections.abc import Callable, Sequence

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.optim import Optimizer

from privacy.dpsgd.clipping import ClippingMode, Gradient, clipped_sums
from privacy.dpsgd.factors import MOST_EXAMPLES, Factors
from privacy.dpsgd.planted import PlantedGradients
from privacy.example_sum_grid import SLACK
from privacy.mechanisms import rounded_sensitivity
from privacy.noise import NoiseSource
from privacy.release_grid import ReleaseGrid

_LARGEST = 2.0**62  # of a coordinate of a sum, in steps: what is beyond it could not be told as a whole number


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Wraps an optimizer so that it sees private gradients only.

    After each backward pass call `accumulate`: once for every microbatch of a batch, not at all for an empty
    batch. Then call `step`, once. The wrapped optimizer may keep any state (momentum, Adam), because what it is
    given is private already, and its weight decay reads the parameters alone.

    Each clipped gradient is rounded to the grid and then still no longer than `clipping_norm`; their sum is exact.
    So one example more moves the sum by at most `clipping_norm`, given its gradient and those of the others. Values
    whose gradients may come as factors (`privacy.dpsgd.factors`) are rounded as a sum instead. That may move it by
    a step in each of them, and by `privacy.example_sum_grid.SLACK` of C for arithmetic: the noise is made for it.

    Args:
        optimizer: makes the update; its parameters are those of the model inside `private_hooks`.
        noise_multiplier: sigma, standard deviation of the noise over the clipping norm, > 0.
        clipping_norm: C, the largest Euclidean norm of one example's gradient, in [1e-9, 1e9].
        expected_batch_size: N, in examples, public, > 0.
        noise: where the noise comes from; no two clients share one.
        values_left_as_factors: how many values may come as factors at most, a public fact of the network and its
            engine (`privacy.dpsgd.engine.values_left_as_factors`).
        mode: how gradients are clipped.
        values_beside: how many numbers each example gives beside its gradient; for those that make such.

    Raises:
        ValueError: if a number is out of range, no parameter is trainable, those that are trainable are neither
            all float32 nor all float64, or the grid would be too coarse for their number.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
        values_left_as_factors: int = 0,
        mode: ClippingMode = "flat",
        values_beside: int = 0,
    ) -> None:
        if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
            raise ValueError(f"noise_multiplier must be a finite number above 0, got {noise_multiplier}")
        if not 1e-9 <= clipping_norm <= 1e9:
            raise ValueError(f"clipping_norm must be between 1e-9 and 1e9, got {clipping_norm}")
        if not (math.isfinite(expected_batch_size) and expected_batch_size > 0):
            raise ValueError(f"expected_batch_size must be a finite number above 0, got {expected_batch_size}")
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipping_norm,
            expected_batch_size=expected_batch_size,
        )
        precisions = {parameter.dtype for parameter in self.params}
        if precisions not in ({torch.float32}, {torch.float64}):
            raise ValueError(f"trainable parameters must be all float32 or all float64, got {precisions or 'none'}")
        self.noise = noise
        self._mode, self._sizes = mode, [parameter.numel() for parameter in self.params]
        # One example moves a sum that is rounded as a sum by at most 1.02 C: half the multiplier again keeps the noise
        # within what can be drawn.
        self._left, self._seen = values_left_as_factors, 0
        self._grid = ReleaseGrid.of(
            clipping_norm=clipping_norm,
            noise_multiplier=noise_multiplier * (1.5 if self._left else 1),
            dimensions=sum(self._sizes) + values_beside,
        )
        sensitivity = float(self._grid.steps)
        if self._left:
            sensitivity = rounded_sensitivity(clipping_norm=sensitivity * (1 + SLACK), grid=1.0, dimension=self._left)
        self._noise_scale = noise_multiplier * sensitivity

    @property
    def clipping_norm(self) -> float:
        """C, the largest Euclidean norm of one example's gradient."""
        return float(self.max_grad_norm)

    @property
    def values_as_rows(self) -> int:
        """Values of one example's gradient that are kept until all of it is known."""
        found: int = sum(self._sizes) - self._left
        return found

    def accumulate(self, *, examples: int | None = None) -> None:
        """Clip the per-example gradients of the last backward pass, add them to the sum, and free them.

        Args:
            examples: how many examples that pass saw, to be checked against the gradients.

        Raises:
            RuntimeError: if a parameter has no per-example gradients, or those of two backward passes (an
                example seen by both would count twice), or their numbers disagree.
        """
        check_per_example(self.params, examples)
        self.clip_and_accumulate()
        free_per_example(self.params)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        """One noisy update from what was accumulated since the last one; from noise alone, if nothing was.

        Raises:
            RuntimeError: if per-example gradients were not accumulated.
            TypeError: if a closure is given: it would make gradients behind the optimizer's back.
        """
        if closure is not None:
            raise TypeError("a private step takes no closure: call accumulate() after each backward pass")
        if any(getattr(parameter, "grad_sample", None) is not None for parameter in self.params):
            raise RuntimeError("step() while per-example gradients are left: call accumulate() first")
        try:
            self.add_noise()
            self.scale_grad()
            if self.step_hook is not None:
                self.step_hook(self)
            self.original_optimizer.step()
        finally:
            # Even if the update fails: a sum that was noised twice would cost twice.
            self.zero_grad(set_to_none=True)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """As in Opacus: what was accumulated is dropped, unless the last step was put off."""
        super().zero_grad(set_to_none)
        if not self._is_last_step_skipped:
            self._seen = 0

    def clip_and_accumulate(self) -> None:
        """As in Opacus, but in whole steps of the grid; and a gradient that is not finite adds zero (rule 5)."""
        gradients = per_example_gradients(self.params)
        self._seen += len(gradients[0])
        left = sum(gradient.numel for gradient in gradients if isinstance(gradient, Factors))
        if left > self._left or self._seen > MOST_EXAMPLES:  # the noise isn't made for these
            gradients = [as_rows(gradient) for gradient in gradients]
        for parameter, clipped in zip(self.params, self._clipped_sums(gradients), strict=True):
            _add(parameter, clipped)

    def accumulate_planted(self, planted: PlantedGradients) -> None:
        """Clip gradients of an auditor's as those of so many more examples, and add them to the sum."""
        columns = planted.columns(self.params)
        self._seen += len(planted)
        sums = self._clipped_sums([some.rows for some in columns])
        for parameter, some, clipped in zip(self.params, columns, sums, strict=True):
            _add(parameter, some.spread(clipped, parameter.numel()))

    def _clipped_sums(self, gradients: list[Gradient]) -> list[Tensor]:
        """In whole steps, or float64 where they are rounded as a sum."""
        return clipped_sums(gradients, self._grid, self._mode)

    def _drawn_noise(self) -> Tensor:
        """Of one step: int64, of as many values as are trained."""
        return self.noise.grid_normal((sum(self._sizes),), self._noise_scale)

    def _worth_of_step(self) -> float:
        """Of the grid, in what gradients are measured in."""
        return self._grid.step

    def add_noise(self) -> None:
        """As in Opacus, but in whole steps, from the noise source; an empty batch, whose sum is zero, is noised too."""
        noise, worth = self._drawn_noise(), self._worth_of_step()
        for parameter, steps in zip(self.params, torch.split(noise, self._sizes), strict=True):
            released = steps.to(parameter.device)
            clipped = getattr(parameter, "summed_grad", None)
            if clipped is not None and clipped.is_floating_point():
                clipped = clipped.clamp(-_LARGEST, _LARGEST).round().long()
            if clipped is not None:
                released = released + clipped
            # All that the data has to do with is in `released`; from here on it is arithmetic on what is public.
            parameter.grad = (released.double() * worth).to(parameter.dtype).view_as(parameter)

    def scale_grad(self) -> None:
        """Divide by the public expected batch size (rule 1)."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size


def _add(parameter: Tensor, clipped: Tensor) -> None:
    earlier = getattr(parameter, "summed_grad", None)
    parameter.summed_grad = clipped if earlier is None else earlier + clipped  # type: ignore[attr-defined]


def check_per_example(parameters: Sequence[Tensor], examples: int | None) -> None:
    """Check what the last backward pass has left.

    Args:
        parameters: that are trained.
        examples: how many examples that pass saw; None if it isn't known.

    Raises:
        RuntimeError: a parameter has no per-example gradients, or those of two backward passes (an example seen by
            both would count twice), or their numbers disagree.
    """
    counts = {len(_per_example(parameter)) for parameter in parameters}
    if len(counts) > 1 or (examples is not None and counts != {examples}):
        raise RuntimeError(
            f"per-example gradients number {sorted(counts)}, examples {examples}: the first axis of every "
            "layer's input must be the example"
        )


def free_per_example(parameters: Sequence[Tensor]) -> None:
    """Free what the last backward pass has left."""
    for parameter in parameters:
        parameter.grad_sample = None  # type: ignore[attr-defined]
        parameter.grad = None  # autograd's own sum, neither clipped nor noisy


def per_example_gradients(parameters: Sequence[Tensor]) -> list[Gradient]:
    """What the last backward pass has left: rows (examples, values), or factors.

    Raises:
        RuntimeError: as `check_per_example`.
    """
    found = [_per_example(parameter) for parameter in parameters]
    return [
        gradient.to(parameter.dtype)
        if isinstance(gradient, Factors)
        else gradient.reshape(len(gradient), parameter.numel()).to(parameter.dtype)
        for gradient, parameter in zip(found, parameters, strict=True)
    ]


def as_rows(gradient: Gradient) -> Tensor:
    """Gradients themselves: (examples, values)."""
    return gradient.rows().flatten(1) if isinstance(gradient, Factors) else gradient


def _per_example(parameter: Tensor) -> Gradient:
    gradient = getattr(parameter, "grad_sample", None)
    if isinstance(gradient, Tensor | Factors):
        return gradient
    raise RuntimeError(
        f"a parameter of shape {tuple(parameter.shape)} has no per-example gradients: there must be a forward and "
        "a backward pass inside private_hooks(), in training mode"
        if gradient is None
        else "two backward passes without accumulate() between them"
    )
