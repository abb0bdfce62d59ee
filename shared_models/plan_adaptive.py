"""The table [privacy.adaptive] of a plan: a clipping norm that follows what is clipped (Andrew et al. 2021).

With `privacy.unit = "example"` it follows the lengths of gradients, from step to step of one client's round, and begins
again with each round (`privacy.dpsgd.adaptive_optimizer`): nobody else learns of it. All else here is of
`privacy.unit = "client"`, where it follows the clients' updates from round to round.

What a round costs is the same as with a fixed norm: each client gives one vector no longer than 1, its clipped update
and one bit together, and that is what the noise hides (`privacy.adaptive_clipping`). So sums are made on a grid for a
norm of 1 that never changes, with one number more than is trained; the norm itself is public, and only bounds what a
client puts in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from privacy.adaptive_clipping import AdaptiveClipping, ClippingState, Split, separate, usual_count_noise
from shared_models.plan_section import Positive, Section

if TYPE_CHECKING:
    from shared_models.plan import Plan

_REACH = 1000.0  # of the bounds: so many times below and above the first norm, by default
_LEAST, _MOST = 1e-9, 1e9  # as of `privacy.clipping_norm`

Norm = Annotated[float, Field(ge=_LEAST, le=_MOST)]


class AdaptivePlan(Section):
    """How the clipping norm follows what is clipped; `privacy.clipping_norm` is where it begins."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Part of the updates (of gradients: examples) that should be no longer than the norm."
    )
    rate: Positive = Field(0.2, description="Step of the norm's logarithm for a part that is wrong by 1.")
    count_noise: Positive | None = Field(
        None,
        description="Standard deviation of the noise on the number of short ones; default: a twentieth of the cohort "
        "(of gradients: of the batch), or more where there is much noise.",
    )
    least_norm: Norm | None = Field(None, description="The norm never goes below; default: a thousandth of the first.")
    most_norm: Norm | None = Field(None, description="The norm never goes above; default: a thousand times the first.")


def is_adaptive(plan: Plan) -> bool:
    """Whether the clipping norm changes from round to round."""
    return plan.privacy.adaptive is not None and plan.privacy.unit == "client"


def adapts_within_rounds(plan: Plan) -> bool:
    """Whether the clipping norm of gradients changes from step to step of a client's round."""
    return plan.privacy.adaptive is not None and plan.privacy.unit == "example"


def summed_values(plan: Plan, trained: int) -> int:
    """Numbers in what a client gives, of so many that are trained: one more where a bit goes with them."""
    return trained + 1 if is_adaptive(plan) else trained


def grid_norm(plan: Plan) -> float:
    """The norm of what clients put into a sum: of whole vectors with a bit it is 1, whatever the clipping norm."""
    return 1.0 if is_adaptive(plan) else plan.privacy.clipping_norm


def filled(plan: Plan) -> AdaptivePlan:
    """The plan's table with its defaults written out.

    Raises:
        ValueError: the noise multiplier is unknown, or the table doesn't fit it.
    """
    given, privacy = plan.privacy.adaptive, plan.privacy
    if given is None or privacy.noise_multiplier is None:
        raise ValueError("the plan is not resolved, or its clipping norm is fixed: there is nothing to fill in")
    noise, first = privacy.noise_multiplier, privacy.clipping_norm
    usual = usual_count_noise(cohort=_cohort(plan), noise_multiplier=noise)
    found = AdaptivePlan(
        quantile=given.quantile,
        rate=given.rate,
        count_noise=usual if given.count_noise is None else given.count_noise,
        least_norm=max(_LEAST, first / _REACH) if given.least_norm is None else given.least_norm,
        most_norm=min(_MOST, first * _REACH) if given.most_norm is None else given.most_norm,
    )
    assert found.count_noise is not None
    if not found.count_noise > noise / 2:
        raise ValueError(
            f"privacy.adaptive.count_noise = {found.count_noise:g} is too little for privacy.noise_multiplier = "
            f"{noise:g}: the bit alone would take all of the noise's price; allowed: above {noise / 2:g}"
        )
    return found


def clipping_of(plan: Plan) -> AdaptiveClipping:
    """The public constants of a resolved plan's norm.

    Raises:
        ValueError: the plan is not resolved, or its norm is fixed.
    """
    table = filled(plan)
    assert table.count_noise is not None
    assert table.least_norm is not None
    assert table.most_norm is not None
    return AdaptiveClipping(
        count_noise=table.count_noise,
        initial_norm=plan.privacy.clipping_norm,
        least_norm=table.least_norm,
        most_norm=table.most_norm,
        quantile=table.quantile,
        rate=table.rate,
    )


def split_of(plan: Plan) -> Split:
    """How a client's vector is split between its update and its bit. Raises ValueError as `clipping_of`."""
    noise = plan.privacy.noise_multiplier
    assert noise is not None or plan.privacy.adaptive is None  # `clipping_of` says so
    return clipping_of(plan).split(noise or 0.0)


def update_noise(plan: Plan) -> float:
    """z_delta: deviation of the noise on the sum of updates over the norm. Raises ValueError as `clipping_of`."""
    return clipping_of(plan).update_noise(plan.privacy.noise_multiplier or 0.0)


def may_be_norm(plan: Plan, norm: object, *, round_number: int) -> bool:
    """Whether a server that follows the plan may name this norm for a round."""
    if type(norm) is not float or not math.isfinite(norm):
        return False
    clipping = clipping_of(plan)
    if round_number == 1:
        return norm == clipping.initial_norm
    return clipping.least_norm <= norm <= clipping.most_norm


def after_round(
    plan: Plan, mean: npt.NDArray[np.float32], norm: float, *, round_number: int
) -> tuple[npt.NDArray[np.float32], float]:
    """The mean update of a round, and the next round's norm: a pure function of what the round released.

    Args:
        plan: resolved.
        mean: noisy mean of what clients gave, over the public number of them: the last value is of the bits.
        norm: of the round.
        round_number: from 1.
    """
    update, fraction = separate(mean.astype(np.float64), norm, split_of(plan), cohort=1.0)
    following = clipping_of(plan).next_norm(ClippingState(norm=norm, round=round_number), fraction)
    return update.astype(np.float32), following.norm


def check_adaptive(plan: Plan) -> None:
    """Refuse a norm that nothing would move, or whose bounds make no sense.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    privacy = plan.privacy
    table, first = privacy.adaptive, privacy.clipping_norm
    if table is None or not plan.is_private:
        return
    if privacy.unit == "example" and privacy.trust != "local":
        raise ValueError(
            f"privacy.adaptive with privacy.unit = 'example' follows the gradients of one client, so it needs "
            f"privacy.trust = 'local', not '{privacy.trust}'; remove it"
        )
    if privacy.clipping != "flat":
        raise ValueError(
            f"privacy.clipping = '{privacy.clipping}': privacy.adaptive moves the norm of flat clipping; allowed: flat"
        )
    if is_adaptive(plan) and plan.federation.wire != "float32":
        raise ValueError(
            f"federation.wire = '{plan.federation.wire}': with privacy.adaptive an update leaves together with a bit; "
            "allowed: float32"
        )
    if table.least_norm is not None and table.least_norm > first:
        raise ValueError(
            f"privacy.adaptive.least_norm = {table.least_norm:g} is above privacy.clipping_norm = {first:g}, the first "
            "round's; lower it"
        )
    if table.most_norm is not None and table.most_norm < first:
        raise ValueError(
            f"privacy.adaptive.most_norm = {table.most_norm:g} is below privacy.clipping_norm = {first:g}, the first "
            "round's; raise it"
        )
    if privacy.noise_multiplier is not None:
        filled(plan)


def _cohort(plan: Plan) -> float:
    """How many contributions a sum is expected to have, a public number."""
    from shared_models.plan_central import expected_cohort, is_central
    from shared_models.plan_secure_sum import cohort_size

    if adapts_within_rounds(plan):
        return float(plan.training.expected_batch_size)
    return expected_cohort(plan) if is_central(plan) else float(cohort_size(plan))
