"""A mean of the models of all rounds in which recent ones weigh most: judged and kept in place of the last one.

Noise that each round adds partly cancels in it (De et al. 2022, arXiv 2204.13650, section 3.3). It is made of models
that are released anyway, so it costs nothing.
"""

from __future__ import annotations

import numpy as np

from shared_models.parameters import Parameters


def averaged(before: Parameters | None, model: Parameters, *, decay: float, rounds: int) -> Parameters:
    """The exponential moving average with one more model: d before + (1 - d) model.

    At first d is smaller than asked, min(decay, (1 + t) / (10 + t)) after t rounds, so that what the training began
    with is soon forgotten.

    Args:
        before: the average so far; None if there is none.
        model: the round's.
        decay: d, in [0, 1).
        rounds: t, from 1: the round's number.

    Returns:
        float32, of the model's names and shapes.
    """
    if before is None:
        return model
    kept = min(decay, (1 + rounds) / (10 + rounds))
    return {
        name: np.asarray(kept * before[name].astype(np.float64) + (1 - kept) * value, np.float32)
        for name, value in model.items()
    }
