"""By class: precision, recall and F1, their averages, and what was taken for what. The figures are scikit-learn's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from server.assessment.facts import Average, ClassRow
from server.assessment.intervals import share

MOST_CLASSES: Final = 200
"""Above it a table of all classes by all classes is not kept."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ByClass:
    """What is known by class; attributes as of `facts.Evaluation`."""

    rows: tuple[ClassRow, ...]
    macro: Average
    weighted: Average
    confusion: tuple[tuple[int, ...], ...] | None
    balanced_accuracy: float | None


def by_class(truth: Labels, guess: Labels, names: Sequence[str]) -> ByClass:
    """Figures by class.

    Args:
        truth: (n,), n > 0, numbers of classes.
        guess: (n,); a negative one is no class.
        names: of the classes.
    """
    from sklearn import metrics as sk

    labels = np.arange(len(names))
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    guessed = np.bincount(guess[guess >= 0], minlength=len(names))
    right = np.bincount(truth[guess == truth], minlength=len(names))
    rows = tuple(
        ClassRow(
            name=name,
            support=int(support[c]),
            guessed=int(guessed[c]),
            precision=share(int(right[c]), int(guessed[c])) if guessed[c] else None,
            recall=share(int(right[c]), int(support[c])) if support[c] else None,
            f1=float(f1[c]) if guessed[c] and support[c] else None,
        )
        for c, name in enumerate(names)
    )
    there = support > 0
    table = None
    if len(names) <= MOST_CLASSES:
        # An example without a guess is in no column; its row sums to less than its support.
        pairs = guess >= 0
        table = sk.confusion_matrix(truth[pairs], guess[pairs], labels=labels) if pairs.any() else None
    return ByClass(
        rows=rows,
        macro=_average(precision[there], recall[there], f1[there], np.ones(int(there.sum()))),
        weighted=_average(precision[there], recall[there], f1[there], support[there]),
        confusion=None if table is None else tuple(tuple(int(cell) for cell in row) for row in table),
        balanced_accuracy=float(recall[there].mean()),
    )


def _average(
    precision: npt.NDArray[np.float64],
    recall: npt.NDArray[np.float64],
    f1: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
) -> Average:
    """A class that nobody was taken for has precision 0 here, as scikit-learn counts it."""
    return Average(
        precision=float(np.average(precision, weights=weights)),
        recall=float(np.average(recall, weights=weights)),
        f1=float(np.average(f1, weights=weights)),
    )
