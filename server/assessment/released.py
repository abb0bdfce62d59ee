"""An evaluation made of what clients released by class: nothing else is known of records that never left them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from server.assessment.facts import Average, ClassRow, Evaluation, Released, Share
from server.class_counts import ClassCounts
from server.noisy_counts import Estimate
from shared_models.cards import card_for
from shared_models.plan import Plan

PROTECTED = (
    "Made of noisy counts, which each client was charged for; intervals cover their noise and chance. Of a class whose "
    "examples are no more than the noise may make, nothing is said."
)
EXACT = "Made of exact counts, which clients entrusted to the server: they are no private release."


def of_released(plan: Plan, found: ClassCounts, *, setting: str) -> Evaluation:
    """The evaluation that the counts of a run's last evaluation make.

    Args:
        plan: resolved.
        found: the counts.
        setting: simulation or deployment.
    """
    names, table = card_for(plan.data).classes, found.table
    rows = tuple(_row(found, label, name) for label, name in enumerate(names))
    accuracy = found.accuracy()
    known = [row for row in rows if row.recall is not None]
    return Evaluation(
        name=plan.name,
        plan_digest=plan.digest(),
        model=None,
        best=False,
        setting=setting,  # type: ignore[arg-type]
        source="released",
        protected=plan.is_private,
        n=max(0, int(table.sum())),
        accuracy=None if found.is_drowned(int(table.sum()), table.size) else _share(accuracy, int(table.sum())),
        loss=None,
        balanced_accuracy=found.balanced_accuracy(),
        auc=None,
        classes=rows,
        macro=_average(known, [1.0] * len(known)),
        weighted=_average(known, [float(row.support) for row in known]),
        confusion=found.counts,
        calibration=None,
        groups=None,
        clients=None,
        language=None,
        released=Released(round=found.round, clients=found.clients, noise=found.noise),
        remarks=(PROTECTED if plan.is_private else EXACT,),
    )


def _row(found: ClassCounts, label: int, name: str) -> ClassRow:
    classes = len(found.counts)
    support, guessed = sum(found.counts[label]), int(found.table[:, label].sum())
    recall = None if found.is_drowned(support, classes) else _share(found.recall(label), support)
    precision = None if found.is_drowned(guessed, classes) else _share(found.precision(label), guessed)
    return ClassRow(
        name=name,
        support=max(0, support),
        guessed=max(0, guessed),
        precision=precision,
        recall=recall,
        f1=None if recall is None or precision is None else _f1(recall.value, precision.value),
    )


def _f1(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall + precision > 0 else 0.0


def _share(found: Estimate, of: int) -> Share | None:
    return None if found.value is None else Share(value=found.value, low=found.low, high=found.high, of=of)


def _average(rows: Sequence[ClassRow], weights: Sequence[float]) -> Average:
    """Over classes of which both are known; None where there is one too few."""
    if not rows or any(row.precision is None or row.f1 is None for row in rows):
        recall = _mean([row.recall.value for row in rows if row.recall], weights) if rows else None
        return Average(precision=None, recall=recall, f1=None)
    return Average(
        precision=_mean([row.precision.value for row in rows if row.precision], weights),
        recall=_mean([row.recall.value for row in rows if row.recall], weights),
        f1=_mean([row.f1 for row in rows if row.f1 is not None], weights),
    )


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return float(np.average(values, weights=weights))
