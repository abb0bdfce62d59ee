"""What a client entrusts to a server that adds the noise: the change that training makes, clipped, and nothing else.

All that a client holds is one unit, so training itself is plain; what bounds its influence is the clipping, which the
server repeats. A client without records sends zeros, and so does one whose training diverged (rule 5): the reply looks
the same. How many records there are, and how they fitted, stays here.
"""

from __future__ import annotations

import math

import numpy as np

from client.contribution import flat, trained_change
from client.site import Site
from client.workplace import Workplace
from privacy.adaptive_clipping import Vector, absent, joint
from shared_models.parameters import Parameters
from shared_models.plan_adaptive import split_of


def entrusted_update(place: Workplace, site: Site, start: Parameters, *, round_number: int) -> Parameters:
    """Train, and clip what that changed to the plan's clipping norm; the round must have been charged.

    Args:
        place: the plan at work.
        site: whose data.
        start: the shared model.
        round_number: from 1.
    """
    change = trained_change(place, site, start, round_number)
    if change is None:
        return {name: np.zeros_like(value) for name, value in start.items()}
    return clipped_change(change, place.plan.privacy.clipping_norm)


def entrusted_joint(place: Workplace, site: Site, start: Parameters, *, round_number: int, norm: float) -> Vector:
    """The same where the clipping norm adapts: the clipped change and a bit, as one vector no longer than 1.

    Args:
        place: the plan at work.
        site: whose data.
        start: the shared model.
        round_number: from 1.
        norm: the round's.
    """
    change = trained_change(place, site, start, round_number)
    if change is None:
        return absent(place.layout.size)
    return joint(flat(change, place.layout), norm, split_of(place.plan))


def clipped_change(change: Parameters, norm: float) -> Parameters:
    """A change shortened to an L2 norm over all its values, as near as float32 can; zeros if it is not finite."""
    whole = {name: value.astype(np.float64) for name, value in change.items()}  # no square overflows there
    length = math.sqrt(math.fsum(float(np.sum(np.square(value))) for value in whole.values()))
    if not math.isfinite(length):
        return {name: np.zeros_like(value) for name, value in change.items()}
    factor = min(1.0, norm / length) if length > 0 else 1.0
    return {name: np.asarray(value * factor, dtype=np.float32) for name, value in whole.items()}
