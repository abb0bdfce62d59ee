"""Early stopping and best-model keeping: what the metric of each evaluation means for the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from server.evaluation import LARGER_IS_BETTER
from shared_models.plan_federation import EvaluationPlan

Reason = Literal["target", "plateau"]


@dataclass(frozen=True)
class Progress:
    """The best evaluation so far.

    Attributes:
        best: value of the plan's metric; None before the first evaluation.
        best_round: the round it came from.
        stale: evaluations since then.
    """

    best: float | None = None
    best_round: int = 0
    stale: int = 0

    def after(self, plan: EvaluationPlan, round_number: int, value: float | None) -> Progress:
        """Progress after one more evaluation; a metric that is undefined or not finite counts as no better."""
        if value is None or not math.isfinite(value):
            return replace(self, stale=self.stale + 1)
        larger = LARGER_IS_BETTER[plan.metric]
        if self.best is None or (value > self.best if larger else value < self.best):
            return Progress(best=value, best_round=round_number, stale=0)
        return replace(self, stale=self.stale + 1)

    def stop(self, plan: EvaluationPlan) -> Reason | None:
        """Why the run should end now, if it should."""
        if plan.target is not None and self.best is not None:
            larger = LARGER_IS_BETTER[plan.metric]
            if (self.best >= plan.target) if larger else (self.best <= plan.target):
                return "target"
        if plan.patience is not None and self.stale >= plan.patience:
            return "plateau"
        return None
