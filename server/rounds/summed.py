"""From the sum of what clients put in to the update that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.secure_encoding import decode
from security.errors import RunError
from shared_models.parameters import Layout, Parameters, unflat
from shared_models.plan import Plan
from shared_models.plan_adaptive import after_round, summed_values
from shared_models.plan_statistics import record_norm
from shared_models.schedule import learning_rate
from shared_models.secure_context import rotation_seed


def check_cohort(plan: Plan, cohort: int, *, round_number: int) -> None:
    """Refuse a cohort for which the plan's noise and ring aren't made: its sum could wrap.

    Raises:
        RunError: it is larger than the plan's.
    """
    whole = plan.secure_parameters().cohort
    if cohort > whole:
        raise RunError(
            f"round {round_number}: {cohort} clients are more than the {whole} of a cohort that the plan's noise and "
            f"ring are made for; give secure_sum.clients = {cohort}, or a cohort of a fixed size"
        )


def fewest_in_sum(plan: Plan, clients: int) -> int:
    """How many of so many clients a sum needs at least; where none over them is safe, of the plan's whole cohort."""
    try:
        return plan.secure_parameters(clients).least
    except ValueError:
        return plan.secure_parameters().least


def update_of(
    total: npt.NDArray[Any],
    plan: Plan,
    layout: Layout,
    *,
    survivors: int,
    round_number: int,
    attempt: bytes = b"",
    norm: float | None = None,
) -> tuple[Parameters, float | None]:
    """The update of the shared model, with the noise of all survivors in it; and the next round's clipping norm, where
    it adapts.

    Of clients' changes it is their mean. Of their sums of clipped gradients it is a step against the mean gradient:
    minus the learning rate times the sum, over the number of records that so many clients have by the plan (rule 1).

    Args:
        total: the sum, modulo the ring's size.
        plan: resolved.
        layout: of the model.
        survivors: clients in the sum, public.
        round_number: from 1.
        attempt: digest of the attempt, if clients turned their vectors by it.
        norm: the round's clipping norm, where it adapts.
    """
    rotation = rotation_seed(plan, attempt, round_number)
    size = summed_values(plan, layout.size)
    mean = decode(total, plan.sum_grid(), survivors=survivors, size=size, rotation=rotation)
    if norm is not None:
        mean, following = after_round(plan, mean, norm, round_number=round_number)
        return unflat(mean, layout), following
    if plan.statistics is not None:  # clients put counts in, shortened to a record's length of 1
        return unflat(mean * np.float32(record_norm(plan)), layout), None
    if plan.is_joint:
        mean = mean * np.float32(-learning_rate(plan, round_number) / plan.training.expected_batch_size)
    return unflat(mean, layout), None
