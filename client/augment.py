"""Changed copies of records, made anew in each step (`shared_models.plan_augment`).

All that is drawn comes from torch's own generator, as dropout's masks do: under privacy that is seeded from the
client's secret entropy (`client.private_trainer`), so that a record more in a batch changes nobody else's copies in a
way that could be foreseen.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shared_models.plan_augment import AugmentPlan


def augmented(x: Tensor, y: Tensor, plan: AugmentPlan | None) -> tuple[Tensor, Tensor]:
    """Copies of examples, those of one beside each other.

    Args:
        x: float (n, ...): (n, channels, height, width), (n, channels, times) or (n, features).
        y: (n,), or (n, places).
        plan: how they are changed; None for not at all.

    Returns:
        (n copies, ...) and (n copies,), on x's device.
    """
    if plan is None or not len(x):
        return x, y
    x, y = (part.repeat_interleave(plan.copies, 0) for part in (x, y))
    if plan.flip:
        x = torch.where(_of_each(x, torch.rand(len(x), device=x.device) < 0.5), x.flip(-1), x)
    if plan.shift:
        x = _shifted(x, plan.shift)
    if plan.scale:
        x = x * _of_each(x, 1 + plan.scale * (2 * torch.rand(len(x), device=x.device) - 1))
    if plan.turn:
        x = _turned(x, plan.turn)
    if plan.jitter:
        x = x + plan.jitter * torch.randn_like(x)
    return x, y


def _shifted(x: Tensor, most: int) -> Tensor:
    """Each example moved by whole places, its edge values beyond the edge."""
    places = x.shape[2:]
    # One frame of edge values around all of them, and of each example another window of it.
    framed = functional.pad(x, (most, most) * len(places), mode="replicate")
    for axis, size in enumerate(places, 2):
        first = torch.randint(0, 2 * most + 1, (len(x), 1), device=x.device)
        window = first + torch.arange(size, device=x.device)
        window = window.reshape(len(x), 1, *(size if axis == other else 1 for other in range(2, x.ndim)))
        framed = framed.gather(axis, window.expand(*framed.shape[:axis], size, *framed.shape[axis + 1 :]))
    return framed


def _turned(x: Tensor, angle: float) -> Tensor:
    """Signals (n, 3 sensors, times), each as if its sensors had been turned in space, all alike."""
    one, two, three = (angle * torch.randn(3, len(x), 1, device=x.device)).unbind()
    zero = torch.zeros_like(one)
    # The exponential of a skew-symmetric matrix is a rotation, about the vector of its three entries.
    rows = (torch.cat(row, 1) for row in ((zero, -three, two), (three, zero, -one), (-two, one, zero)))
    turns: Tensor = torch.linalg.matrix_exp(torch.stack(list(rows), 1))
    made: Tensor = turns[:, None] @ x.reshape(len(x), -1, 3, x.shape[2])
    return made.reshape(x.shape)


def _of_each(x: Tensor, values: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))
