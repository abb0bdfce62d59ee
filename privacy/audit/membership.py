"""Membership inference by likelihood ratios, LiRA (Carlini et al. 2022, arXiv 2112.03570, algorithm 1).

Shadow models are trained with and without each record. How sure a model is of a record's label, as a logit, is nearly
normal over models of either kind; a record's score is how much likelier the attacked model's is under "with".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_LEAST_DEVIATION = 1e-6


@dataclass(frozen=True, kw_only=True)
class Roc:
    """A receiver operating characteristic, by threshold from the strictest.

    Attributes:
        false_alarms: rates, from 0 to 1.
        detected: rates at them.
    """

    false_alarms: Floats
    detected: Floats

    @property
    def area(self) -> float:
        """Under the curve: 0.5 is guessing."""
        return float(np.trapezoid(self.detected, self.false_alarms))

    def detected_at(self, false_alarms: float) -> float:
        """The largest rate of detection that costs at most so many false alarms."""
        return float(np.max(self.detected[self.false_alarms <= false_alarms]))


def confidence(losses: Floats) -> Floats:
    """Cross-entropies as logits of the label's probability: log(p / (1 - p)) with p = e^-loss (section IV.B)."""
    losses = np.maximum(losses, 1e-12)
    found: Floats = -losses - np.log(-np.expm1(-losses))
    return found


def likelihood_ratios(shadows: Floats, planted: Bools, attacked: Floats) -> Floats:
    """Score of each record: log likelihood of the attacked model's confidence under "with" less that under "without".

    Both laws' deviations are pooled over records, as the paper does with few shadow models.

    Args:
        shadows: (models, records), confidences.
        planted: (models, records), who trained on what; each record with both kinds of model.
        attacked: (records,), confidences of the attacked model.

    Raises:
        ValueError: shapes differ, or a record lacks models of a kind.
    """
    if shadows.shape != planted.shape or shadows.shape[1:] != attacked.shape:
        raise ValueError(f"shapes {shadows.shape}, {planted.shape} and {attacked.shape} don't go together")
    with_counts = planted.sum(0)
    if with_counts.min() < 1 or with_counts.max() > len(planted) - 1:
        raise ValueError("each record needs shadow models with it and without it")
    laws = []
    for kind in (planted, ~planted):
        means = np.where(kind, shadows, 0).sum(0) / kind.sum(0)
        spread = np.where(kind, shadows - means, 0)
        freedom = max(1, int(kind.sum() - kind.shape[1]))
        laws.append(stats.norm(means, max(_LEAST_DEVIATION, float(np.sqrt((spread**2).sum() / freedom)))))
    found: Floats = laws[0].logpdf(attacked) - laws[1].logpdf(attacked)
    return found


def roc(scores: Floats, planted: Bools) -> Roc:
    """The curve of a score against coins.

    Raises:
        ValueError: shapes differ, or all coins fell alike.
    """
    if scores.shape != planted.shape or planted.all() or not planted.any():
        raise ValueError("a curve needs a score for each coin, and coins of both kinds")
    from sklearn.metrics import roc_curve

    false_alarms, detected, _ = roc_curve(planted, scores, drop_intermediate=False)
    return Roc(false_alarms=false_alarms, detected=detected)
