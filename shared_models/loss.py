"""The loss that a plan's clients train by."""

from __future__ import annotations

from privacy.dpsgd.example_loss import ExampleLoss
from shared_models.plan import Plan


def loss_of(plan: Plan) -> ExampleLoss:
    """Cross-entropy with the plan's smoothing and weights."""
    return ExampleLoss(label_smoothing=plan.training.label_smoothing, class_weights=plan.training.class_weights)
