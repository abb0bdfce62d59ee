"""What a client puts into a secure sum, on the grid and with a share of noise: clipped gradients, or a clipped change.

Under example-level privacy a round is one step of a joint DP-SGD: what goes in is the sum of its records' clipped
gradients, of all of them or of those that secret coins have drawn. Under client-level privacy all that a client holds
is one unit, so training itself is plain; what bounds its influence is the clipping, and what hides it is the noise of
all. A client without records puts zeros and noise in, and so does one whose training diverged (rule 5): nobody can
tell.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.noise import noise_of
from client.site import Site
from client.trainer import train_plain
from client.workplace import Workplace
from privacy.adaptive_clipping import joint
from privacy.example_sum_grid import ExampleSumGrid
from privacy.secure_encoding import Words, encode, encode_gradients
from shared_models.parameters import Layout, Parameters, in_order, unflat
from shared_models.plan_adaptive import split_of, summed_values
from shared_models.secure_context import rotation_seed


def contribution(
    place: Workplace,
    site: Site,
    start: Parameters,
    *,
    round_number: int,
    attempt: bytes,
    norm: float | None = None,
) -> Words:
    """Train, and encode what that changed, for one attempt; the round must have been charged.

    Args:
        place: the plan at work.
        site: whose data.
        start: the shared model.
        round_number: from 1.
        attempt: its digest, from which the rotation follows; of a sum without masks, anything.
        norm: the round's clipping norm, where it adapts: a bit goes with the change then.

    Returns:
        Whole numbers modulo the ring's size, noise included, as many as the plan's `secure_sum.dimension`.
    """
    plan = place.plan
    noise = noise_of(plan, "noise", site.client, round_number)
    grid, bits = plan.sum_grid(), plan.secure.bits
    assert bits is not None  # or the plan were not resolved
    if isinstance(grid, ExampleSumGrid):
        if plan.statistics is not None:
            from client.statistics import exact_counts, shortened_counts

            counts = shortened_counts(exact_counts(site.training_records(place), plan), plan)
            return encode_gradients(counts, grid, bits=bits, noise=noise)
        from client.private_trainer import gradient_sum

        gradients = gradient_sum(place.model, start, site.training_records(place), plan, noise=noise)
        return encode_gradients(gradients, grid, bits=bits, noise=noise)
    vector = np.zeros(summed_values(plan, place.layout.size), np.float32)
    change = trained_change(place, site, start, round_number)
    if change is not None:
        vector = flat(change, place.layout)
        if norm is not None:
            vector = joint(vector, norm, split_of(plan)).astype(np.float32)
    rotation = rotation_seed(plan, attempt, round_number)
    return encode(vector, grid, bits=bits, noise=noise, rotation=rotation)


def trained_change(place: Workplace, site: Site, start: Parameters, round_number: int) -> Parameters | None:
    """What a client's training changes, or an auditor's canary in its place; None where there are no records."""
    plan, records = place.plan, site.training_records(place)
    if records.planted is not None and len(records.planted):
        return unflat(records.planted.total(place.layout.size), place.layout)
    if not len(records):
        return None
    return train_plain(place.model, start, records, plan, round_number=round_number, client=site.client)[0]


def flat(change: Parameters, layout: Layout) -> npt.NDArray[np.float32]:
    """The values of a change in one row, in the layout's order."""
    return np.concatenate([np.zeros(0, np.float32), *(value.ravel() for _, value in in_order(change, layout))])
