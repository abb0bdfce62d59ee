"""What a client puts into a secure sum: the change that training makes, clipped, on the grid, with a share of noise.

Under client-level privacy all that a client holds is one unit, so training itself is plain; what bounds its influence
is the clipping, and what hides it is the noise of all. A client without records puts zeros and noise in, and so does
one whose training diverged (rule 5): nobody can tell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.noise import noise_of
from client.site import Site
from client.trainer import train_plain
from client.workplace import Workplace
from privacy.secure_encoding import Words, encode
from shared_models.parameters import Layout, Parameters, in_order
from shared_models.secure_context import rotation_seed


def contribution(place: Workplace, site: Site, start: Parameters, *, round_number: int, attempt: bytes) -> Words:
    """Train, and encode what that changed, for one attempt; the round must have been charged.

    Args:
        place: the plan at work.
        site: whose data.
        start: the shared model.
        round_number: from 1.
        attempt: its digest, from which the rotation follows.

    Returns:
        Whole numbers modulo the ring's size, noise included, as many as the plan's `secure_sum.dimension`.
    """
    plan, records = place.plan, site.training_records(place)
    change = {name: np.zeros_like(value) for name, value in start.items()}
    if len(records):
        change, _ = train_plain(place.model, start, records, plan, round_number=round_number, client=site.client)
    noise = noise_of(plan, "noise", site.client, round_number)
    bits, rotation = plan.secure.bits, rotation_seed(plan, attempt, round_number)
    assert bits is not None  # or the plan were not resolved
    return encode(flat(change, place.layout), plan.sum_grid(), bits=bits, noise=noise, rotation=rotation)


def flat(change: Parameters, layout: Layout) -> npt.NDArray[np.float32]:
    """The values of a change in one row, in the layout's order."""
    return np.concatenate([np.zeros(0, np.float32), *(value.ravel() for _, value in in_order(change, layout))])
