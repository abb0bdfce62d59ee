"""Whether a model's probabilities mean what they say: expected calibration error (Guo et al. 2017, arXiv 1706.04599, 15
bins of equal width by the probability of the guess) and the Brier score (Brier 1950), summed over all classes."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from server.assessment.facts import LEAST, Bin, Calibration
from server.assessment.intervals import share

BINS: Final = 15


def calibration(probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]) -> Calibration | None:
    """How a classifier is calibrated.

    Args:
        probabilities: (n, classes), each row adds up to 1.
        truth: (n,), n > 0.

    Returns:
        None if a probability is not finite.
    """
    from sklearn.metrics import brier_score_loss

    if not np.isfinite(probabilities).all():
        return None
    n, classes = probabilities.shape
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    edges = np.linspace(0.0, 1.0, BINS + 1)
    of_bin = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # low < p <= high
    bins, error = [], 0.0
    for index in range(BINS):
        inside = of_bin == index
        count, hits = int(inside.sum()), int(right[inside].sum())
        mean = float(confidence[inside].mean()) if count else None
        if mean is not None:
            error += abs(mean * count - hits) / n
        bins.append(
            Bin(
                low=float(edges[index]),
                high=float(edges[index + 1]),
                n=count,
                confidence=mean,
                accuracy=share(hits, count) if count >= LEAST else None,
            )
        )
    if classes == 2:  # the library halves it, and takes the positive class alone
        brier = 2 * float(brier_score_loss(truth, probabilities[:, 1], labels=[0, 1]))
    else:
        brier = float(brier_score_loss(truth, probabilities, labels=np.arange(classes), scale_by_half=False))
    return Calibration(error=error, brier=brier, bins=tuple(bins))
