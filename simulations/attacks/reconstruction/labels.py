"""Which classes a client's records have, from the bias of the last layer alone.

The gradient of cross-entropy by the logits is `p - e_y`: of a single record it is negative in one place, its class
(iDLG: Zhao, Mopuri & Bilen 2020, arXiv 2001.02610). Of a batch its mean is `mean p - counts / n`; with `mean p` taken
from records of one's own invention it tells how many there are of each class (Geng et al. 2021, arXiv 2110.09074, 4.2).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from security.errors import UsageError
from shared_models.cards import card_for
from simulations.attacks.reconstruction.replay import Replay, Values


def labels_seen(replay: Replay, movement: Values, dummies: Tensor) -> Tensor:
    """The classes (n,) of the records that a movement was computed from, sorted.

    Args:
        replay: of the round.
        movement: that was seen.
        dummies: (n, *shape), records of the attacker's own invention, as many as there were.

    Raises:
        UsageError: the network's last layer has no bias.
    """
    name = last_bias(replay)
    if name is None:
        raise UsageError("the network's last layer has no bias, from which classes could be inferred")
    drift = replay.drift()[name]
    seen = movement[name] - drift
    if len(dummies) == 1:
        return seen.argmax()[None]  # a step goes against the gradient, and only its class' is negative
    n, classes = len(dummies), len(seen)
    with torch.no_grad():
        chances = torch.softmax(functional_call(replay.model, replay.start, (dummies,)), 1).mean(0)
    # How far a gradient of this kind moves the bias (rate, steps, momentum, clipping) is tried on the dummies.
    tried = torch.arange(n) % classes
    slope = chances - torch.bincount(tried, minlength=classes) / n
    with torch.set_grad_enabled(not replay.clips):  # of clipped gradients the sum needs no graph, which would be large
        moved = replay.movement(dummies, tried)[name].detach() - drift
    scale = (moved @ slope) / (slope @ slope)
    return torch.from_numpy(_rounded((n * (chances - seen / scale)).numpy(), n))


def likely_labels(public: Tensor, count: int) -> Tensor:
    """So many labels in the shares that public ones (m,) have: what a server would guess that looked at nothing."""
    shares = torch.bincount(public).double() / len(public)
    return torch.from_numpy(_rounded((count * shares).numpy(), count))


def label_accuracy(found: Tensor, truth: Tensor) -> float:
    """Part of the classes that are right, whatever their order: the overlap of two lists with repetitions."""
    most = int(max(found.max(), truth.max())) + 1
    both = torch.minimum(torch.bincount(found, minlength=most), torch.bincount(truth, minlength=most))
    return float(both.sum()) / len(truth)


def _rounded(
    counts: np.ndarray[tuple[int, ...], np.dtype[np.float64]], n: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """n labels whose counts are nearest to estimated ones: each goes to the class that lacks most."""
    left, given = counts.copy(), np.zeros(len(counts), dtype=np.int64)
    for _ in range(n):
        place = int(left.argmax())
        given[place] += 1
        left[place] -= 1
    return np.repeat(np.arange(len(counts)), given)


def last_bias(replay: Replay) -> str | None:
    """Name of the last layer's bias, with a value for each class; None where it has none."""
    name, value = list(replay.start.items())[-1]
    return name if tuple(value.shape) == (card_for(replay.plan.data).form.classes,) else None
