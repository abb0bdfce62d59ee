"""The learning rate over the rounds of a run."""

from __future__ import annotations

import math

from shared_models.plan import CosineSchedule, Plan, StepSchedule


def learning_rate(plan: Plan, round_number: int) -> float:
    """The local learning rate in a round, counted from 1; a public function of the plan.

    The cosine is aimed one round beyond the last: a round at a rate of zero would cost privacy and change nothing.
    """
    schedule, rounds = plan.training.schedule, plan.federation.rounds
    rate = plan.training.learning_rate
    if round_number <= schedule.warmup_rounds:
        return rate * round_number / (schedule.warmup_rounds + 1)
    done = round_number - 1 - schedule.warmup_rounds
    if isinstance(schedule, CosineSchedule):
        part = done / max(1, rounds - schedule.warmup_rounds)
        low = schedule.final_fraction
        return rate * (low + (1 - low) * (1 + math.cos(math.pi * part)) / 2)
    if isinstance(schedule, StepSchedule):
        return rate * schedule.factor ** (done // schedule.every)
    return rate
