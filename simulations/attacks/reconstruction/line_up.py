"""A line-up: the attacker has the record among others, and says which it was.

Inversion has to invent a record; who has candidates need not. Each candidate's own movement of the model is held
against what was seen. With Gaussian noise, and one record behind the movement, no test can tell candidates apart better
(Neyman & Pearson 1933), so this is close to what an epsilon speaks of, where inversion is far below it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from simulations.attacks.reconstruction.inversion import flat
from simulations.attacks.reconstruction.replay import Replay, Values

_AT_ONCE: Final = 64  # candidates whose gradients are in memory together; of a large network fewer
_VALUES: Final = 2**26


def scores_of(replay: Replay, movement: Values, x: Tensor, y: Tensor, *, records: int) -> Tensor:
    """How much each candidate (m,) explains of a movement of one step: the log-likelihood, up to scale and a constant.

    The mean candidate stands for the records beside it, where there were more than one.

    Args:
        replay: of the round.
        movement: that was seen.
        x, y: candidates (m, *shape) and their classes.
        records: behind the movement.

    Raises:
        ValueError: the round has several steps.
    """
    if len(replay.batches) != 1:
        raise ValueError("a line-up is held of rounds of one step")
    factor, seen = -replay.rate / (replay.divisor or records), flat(movement)
    told = replay.told(seen)

    def gradients() -> Iterator[Tensor]:  # made twice rather than kept: they may be larger than the memory
        some = max(1, min(_AT_ONCE, _VALUES // sum(value.numel() for value in replay.start.values())))
        for part in zip(torch.split(x, some), torch.split(y, some), strict=True):
            each = replay.of_each(replay.start, *part).values()
            yield factor * torch.cat([one.flatten(1) for one in each], dim=1) * told

    with torch.no_grad():
        mean = torch.stack([part.sum(0) for part in gradients()]).sum(0) / len(x)
        left = seen - flat(replay.drift()) * told - records * mean
        differences = (part - mean for part in gradients())
        return torch.cat([one @ left - one.square().sum(1) / 2 for one in differences])


def ahead(scores: Tensor, truth: Tensor) -> float:
    """Part of the other candidates that score less than the true ones, a mean: 1 is certainty, 0.5 chance.

    Args:
        scores: (m,).
        truth: positions (n,) of the true ones, fewer than m.
    """
    others = torch.ones(len(scores), dtype=torch.bool)
    others[truth] = False
    lead = scores[truth][:, None] - scores[others][None]
    return float((lead.sign() + 1).mean() / 2)
