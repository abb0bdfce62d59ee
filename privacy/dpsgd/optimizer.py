"""The private step: clip each example's gradient, sum, add noise, divide by a public number.

The update is (sum of clipped + sigma C xi) / N (Abadi et al. 2016, arXiv 1607.00133, algorithm 1), with xi
standard normal, C the clipping norm, sigma the noise multiplier, and N the *public* expected batch size, never
the size of the batch that was drawn (rule 1).
"""

import math
from collections.abc import Callable

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor
from torch.linalg import vector_norm
from torch.optim import Optimizer

from privacy.noise import NoiseSource

# Squares are summed in blocks of this length, and the blocks in float64. Over a whole layer a float32 sum drifts
# (0.2 % at 10^7 parameters), and a norm found too small is a gradient clipped too little.
_BLOCK = 128


class PrivateOptimizer(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Wraps an optimizer so that it sees private gradients only. Clipping is flat: over all parameters.

    After each backward pass call `accumulate`: once for every microbatch of a batch, not at all for an empty
    batch. Then call `step`, once. The wrapped optimizer may keep any state (momentum, Adam), because what it is
    given is private already, and its weight decay reads the parameters alone.

    Each clipped gradient has a norm of at most `clipping_norm`, rounding included. The rounding of their sum
    is not bounded here: see `privacy.noise` on floating-point releases.

    Args:
        optimizer: makes the update; its parameters are those of the model inside `private_hooks`.
        noise_multiplier: sigma, standard deviation of the noise over the clipping norm, > 0.
        clipping_norm: C, the largest Euclidean norm of one example's gradient, in [1e-9, 1e9].
        expected_batch_size: N, in examples, public, > 0.
        noise: where the noise comes from; no two clients share one.

    Raises:
        ValueError: if a number is out of range, no parameter is trainable, or those that are trainable are
            neither all float32 nor all float64.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        clipping_norm: float,
        expected_batch_size: float,
        noise: NoiseSource,
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

    @property
    def clipping_norm(self) -> float:
        """C, the largest Euclidean norm of one example's gradient."""
        return float(self.max_grad_norm)

    def accumulate(self, *, examples: int | None = None) -> None:
        """Clip the per-example gradients of the last backward pass, add them to the sum, and free them.

        Args:
            examples: how many examples that pass saw, to be checked against the gradients.

        Raises:
            RuntimeError: if a parameter has no per-example gradients, or those of two backward passes (an
                example seen by both would count twice), or their numbers disagree.
        """
        counts = {len(_per_example(parameter)) for parameter in self.params}
        if len(counts) > 1 or (examples is not None and counts != {examples}):
            raise RuntimeError(
                f"per-example gradients number {sorted(counts)}, examples {examples}: the first axis of every "
                "layer's input must be the example"
            )
        self.clip_and_accumulate()
        for parameter in self.params:
            parameter.grad_sample = None
            parameter.grad = None  # autograd's own sum, neither clipped nor noisy

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
            self.original_optimizer.step()
        finally:
            # Even if the update fails: a sum that was noised twice would cost twice.
            self.zero_grad(set_to_none=True)

    def clip_and_accumulate(self) -> None:
        """As in Opacus, but exact to rounding; and a gradient that is not finite adds zero (rule 5)."""
        gradients = [parameter.grad_sample.reshape(-1, parameter.numel()) for parameter in self.params]
        factors = _clip_factors(gradients, self.clipping_norm)
        usable = factors > 0
        if not usable.all():  # 0 x NaN is NaN: such rows have to go
            factors, gradients = factors[usable], [gradient[usable] for gradient in gradients]
        for parameter, gradient in zip(self.params, gradients, strict=True):
            clipped = (factors.to(gradient) @ gradient).view_as(parameter)
            earlier = getattr(parameter, "summed_grad", None)
            parameter.summed_grad = clipped if earlier is None else earlier.add_(clipped)

    def add_noise(self) -> None:
        """As in Opacus, but from the noise source; and an empty batch, whose sum is zero, is noised too."""
        for parameter in self.params:
            noise = self.noise.standard_normal(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            noise *= self.noise_multiplier * self.clipping_norm
            clipped = getattr(parameter, "summed_grad", None)
            parameter.grad = noise if clipped is None else noise.add_(clipped)

    def scale_grad(self) -> None:
        """Divide by the public expected batch size (rule 1)."""
        for parameter in self.params:
            parameter.grad /= self.expected_batch_size


def _per_example(parameter: Tensor) -> Tensor:
    gradient = getattr(parameter, "grad_sample", None)
    if isinstance(gradient, Tensor):
        return gradient
    raise RuntimeError(
        f"a parameter of shape {tuple(parameter.shape)} has no per-example gradients: there must be a forward and "
        "a backward pass inside private_hooks(), in training mode"
        if gradient is None
        else "two backward passes without accumulate() between them"
    )


def _clip_factors(gradients: list[Tensor], clipping_norm: float) -> Tensor:
    """Factors min(1, C / norm), of shape (examples,) in float64; 0 where the norm is no usable number.

    C is lowered by what the norm of a block and the product may be off (Higham 2002, section 4.2: a sum of n
    squares is off by n roundings at most), so that no clipped float32 gradient is longer than C. In float64,
    adding up the blocks may exceed it by 1e-11 C. A norm whose square is out of range counts as not finite.
    """
    precision = torch.finfo(gradients[0].dtype)
    norms = vector_norm(torch.stack([_norms(gradient) for gradient in gradients]), dim=0)
    factors = (clipping_norm * (1 - (_BLOCK / 4 + 4) * precision.eps) / norms).clamp(max=1.0)
    return torch.where(norms <= math.sqrt(precision.max), factors, 0.0)


def _norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, in float64."""
    whole = rows.shape[1] // _BLOCK * _BLOCK
    blocks = rows[:, :whole].reshape(len(rows), whole // _BLOCK, _BLOCK)
    parts = [vector_norm(blocks, dim=2), vector_norm(rows[:, whole:], dim=1, keepdim=True)]
    norms: Tensor = vector_norm(torch.cat(parts, dim=1).double(), dim=1)
    return norms
