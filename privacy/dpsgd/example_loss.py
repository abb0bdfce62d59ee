"""The loss of single examples: cross-entropy, summed over a batch, so that no example weighs on another's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

NO_LABEL = 0
"""What a place of a text holds that nothing is predicted for: padding."""


@dataclass(frozen=True)
class ExampleLoss:
    """Cross-entropy of logits and labels.

    Where every place of an example has a label (a language model), an example's loss is the mean over its places that
    have one (`NO_LABEL` is none): so its gradient, and what clipping makes of it, doesn't grow with its length.

    Attributes:
        label_smoothing: part of the target that is spread evenly over all classes, in [0, 1) (Szegedy et al. 2016,
            arXiv 1512.00567, section 7).
        class_weights: what each class' terms are multiplied by; public, or released. Without places only.

    Raises:
        ValueError: a value that can't be.
    """

    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is from 0 to below 1, not {self.label_smoothing}")
        if any(not (math.isfinite(weight) and weight > 0) for weight in self.class_weights or ()):
            raise ValueError("class weights are positive numbers")

    @property
    def is_plain(self) -> bool:
        """Whether it is cross-entropy and nothing else."""
        return self.label_smoothing == 0 and self.class_weights is None

    def of_each(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss (n,) of each example.

        Args:
            logits: (n, classes), or (n, places, classes).
            labels: int64 (n,), or (n, places).

        Raises:
            ValueError: weights and places.
        """
        if labels.ndim == 1:
            weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
            return functional.cross_entropy(
                logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="none"
            )
        if self.class_weights is not None:
            raise ValueError("a language model's tokens have no weights")
        of_places = functional.cross_entropy(
            logits.transpose(1, 2),
            labels,
            label_smoothing=self.label_smoothing,
            ignore_index=NO_LABEL,
            reduction="none",
        )
        return of_places.sum(1) / (labels != NO_LABEL).sum(1).clamp(min=1)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the examples; see `of_each`."""
        if labels.ndim == 1:  # as one operation: its backward pass is one too
            weights = None if self.class_weights is None else logits.new_tensor(self.class_weights)
            return functional.cross_entropy(
                logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="sum"
            )
        return self.of_each(logits, labels).sum()

    def slopes(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The gradient (n, classes) of each example's loss by its logits; without places.

        With probabilities p, weights w, smoothing s and K classes: the target of an example is t = (1 - s) w_y e_y +
        (s / K) w, and the gradient |t| p - t, |t| the sum of t (torch's weighted smoothing; without weights p - t).
        """
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(f"{len(self.class_weights)} weights for {logits.shape[1]} classes")
        slopes, rows = torch.softmax(logits, 1), torch.arange(len(labels), device=logits.device)
        if self.is_plain:
            slopes[rows, labels] -= 1
            return slopes
        weights = logits.new_tensor(self.class_weights or [1.0] * logits.shape[1])
        target = (weights * (self.label_smoothing / logits.shape[1])).repeat(len(labels), 1)
        target[rows, labels] += weights[labels] * (1 - self.label_smoothing)
        return slopes * target.sum(1, keepdim=True) - target


PLAIN: Final = ExampleLoss()
"""Cross-entropy and nothing else."""
