"""What an attacker adds to the vector that it puts into a secure sum.

A masked vector is the vector plus masks, modulo the ring's size, and nobody sees more of it. So an attacker who adds
whole numbers to what its own software has masked adds just these to the sum, whatever the masks: no clipping of its
guard, no check of the server stands between. What bounds it is the ring alone: past half its size a coordinate of the
sum comes out with the other sign.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privacy.central_sum import clipped
from privacy.secure_encoding import turned
from shared_models.plan import Plan
from shared_models.schedule import learning_rate
from shared_models.secure_context import rotation_seed
from simulations.attacks.poisoning.updates import Vector

_MOST: Final = 2.0**62  # of a coordinate: whole numbers of 64 bits hold it


def added_to_sum(
    words: npt.NDArray[Any],
    update: Vector,
    own: Vector,
    plan: Plan,
    *,
    round_number: int,
    attempt: bytes,
    keeps_norm: bool,
) -> npt.NDArray[Any]:
    """What an attacker sends in place of what its guard has let out.

    Args:
        words: that, masked or not: whole numbers modulo 2^32 or 2^64, by their type.
        update: the change of the model that it would have in the sum.
        own: its honest change, which is in there and is taken out, as far as it is known: to the rounding.
        plan: resolved, with secure sums of updates or of gradients.
        round_number: from 1.
        attempt: digest of the attempt; of a sum without masks, anything.
        keeps_norm: whether the update is clipped as an honest one.
    """
    grid = plan.sum_grid()
    if plan.is_joint:
        # A sum of gradients becomes a step against their mean; what the honest one was is not known, and stays in.
        of_step = -plan.training.expected_batch_size / learning_rate(plan, round_number)
        change = update.astype(np.float64) * of_step / grid.step
        if keeps_norm:  # so many records have gradients of the clipping norm each
            change = clipped(change, plan.training.expected_batch_size * plan.privacy.clipping_norm / grid.step)
    else:
        most = plan.privacy.clipping_norm / grid.step
        wanted = update.astype(np.float64) / grid.step
        wanted = clipped(wanted, most) if keeps_norm else wanted
        change = wanted - clipped(own.astype(np.float64) / grid.step, most)
    rotation = rotation_seed(plan, attempt, round_number)
    finite = np.nan_to_num(change, nan=0.0, posinf=_MOST, neginf=-_MOST)
    steps = finite if rotation is None else turned(finite, rotation)
    whole = np.rint(np.clip(steps, -_MOST, _MOST)).astype(np.int64)
    found: npt.NDArray[Any] = words + whole.astype(words.dtype)  # modulo the ring's size
    return found
