"""The optimisers of plain local training: `torch.optim`'s arithmetic, to the bit, without its classes.

A client's training is short and begins anew each round, so what a class costs before its first step weighs more than
its steps: torch's import their compiler (over a second in each process), call hooks and write profiles. The functions
behind them do none of that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from shared_models.plan import TrainingPlan

_EPSILON: Final = 1e-8  # as torch's classes have it by default


class LocalOptimizer:
    """Moves parameters along their gradients, as a plan's [training] says.

    Args:
        parameters: what is trained. One without a gradient stays where it is in that step.
        training: the plan's; its kind of optimiser and that kind's constants, and `proximal_mu`.
        learning_rate: of the round.
        correction: of each parameter, added to its gradient in every step (SCAFFOLD's c - c_i).
        anchor: what the proximal term pulls each parameter towards; default: where it begins.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        training: TrainingPlan,
        learning_rate: float,
        correction: Sequence[Tensor] | None = None,
        anchor: Sequence[Tensor] | None = None,
    ) -> None:
        self._parameters = tuple(parameters)
        self._rule: _Rule = (
            _Momentum(training, learning_rate) if training.optimizer == "sgd" else _Moments(training, learning_rate)
        )
        self._correction = correction
        self._mu = training.proximal_mu
        begun = self._parameters if anchor is None else anchor
        self._anchors = tuple(p.detach().clone() for p in begun) if self._mu > 0 else ()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for p in self._parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take a step."""
        moved = [(i, p, p.grad) for i, p in enumerate(self._parameters) if p.grad is not None]
        if self._correction is not None:
            for i, _, gradient in moved:
                gradient.add_(self._correction[i])
        if self._anchors:
            # Towards the round's start, or an anchor: mu (w - w0) joins the gradient (arXiv 1812.06127, equation 2).
            for i, p, gradient in moved:
                gradient.add_(p - self._anchors[i], alpha=self._mu)
        self._rule.move([i for i, _, _ in moved], [p for _, p, _ in moved], [gradient for _, _, gradient in moved])


class _Rule(Protocol):
    def move(self, which: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        """Take a step; `which` names each parameter, so that what is kept of earlier steps is found again."""


class _Momentum:
    """Stochastic gradient descent."""

    def __init__(self, training: TrainingPlan, learning_rate: float) -> None:
        self._rate, self._momentum, self._decay = learning_rate, training.momentum, training.weight_decay
        self._kept: dict[int, Tensor | None] = {}

    def move(self, which: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        kept = [self._kept.get(i) for i in which]
        sgd(
            parameters,
            gradients,
            kept,
            has_sparse_grad=any(gradient.is_sparse for gradient in gradients),
            weight_decay=self._decay,
            momentum=self._momentum,
            lr=self._rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._momentum != 0:
            self._kept.update(zip(which, kept, strict=True))


class _Moments:
    """Adam, or AdamW, whose weight decay is not part of the gradient."""

    def __init__(self, training: TrainingPlan, learning_rate: float) -> None:
        self._function: Callable[..., None] = adam if training.optimizer == "adam" else adamw
        self._rate, self._betas, self._decay = learning_rate, training.betas, training.weight_decay
        self._kept: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # steps, means of gradients and of their squares

    def move(self, which: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for i, p in zip(which, parameters, strict=True):
            if i not in self._kept:
                self._kept[i] = torch.tensor(0.0), torch.zeros_like(p), torch.zeros_like(p)
        kept = [self._kept[i] for i in which]
        self._function(
            parameters,
            gradients,
            [mean for _, mean, _ in kept],
            [square for _, _, square in kept],
            [],
            [steps for steps, _, _ in kept],
            amsgrad=False,
            beta1=self._betas[0],
            beta2=self._betas[1],
            lr=self._rate,
            weight_decay=self._decay,
            eps=_EPSILON,
            maximize=False,
        )
