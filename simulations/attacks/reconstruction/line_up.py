"""A line-up: the attacker has the record among others, and says which it was.

Inversion has to invent a record; who has candidates need not. Each candidate's own movement of the model is held
against what was seen. With Gaussian noise, and one record behind the movement, no test can tell candidates apart better
(Neyman & Pearson 1933), so this is close to what an epsilon speaks of, where inversion is far below it.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from simulations.attacks.reconstruction.inversion import flat
from simulations.attacks.reconstruction.replay import Replay, Values

_AT_ONCE: Final = 64  # candidates whose gradients are in memory together


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
    factor = -replay.rate / (replay.divisor or records)
    with torch.no_grad():
        parts = [
            torch.cat([one.flatten(1) for one in replay.of_each(replay.start, *some).values()], dim=1)
            for some in zip(torch.split(x, _AT_ONCE), torch.split(y, _AT_ONCE), strict=True)
        ]
    each = factor * torch.cat(parts)
    mean = each.mean(0)
    differences = each - mean
    return differences @ (flat(movement) - records * mean) - differences.square().sum(1) / 2


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
