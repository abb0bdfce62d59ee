"""Judging a finished model on records that are at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from security.errors import UsageError, did_you_mean
from server.assessment.calibration import calibration
from server.assessment.classes import by_class
from server.assessment.facts import Average, Evaluation, Source
from server.assessment.groups import CLIENT, MOST_VALUES, groups_of, ranges
from server.assessment.intervals import share
from server.assessment.language import next_token
from server.evaluation import TestData, guesses, metrics_of, scores_of
from shared_models.cards import DataCard, card_for
from shared_models.plan import Plan

Text = npt.NDArray[np.str_]

NOT_PROTECTED = "These figures are exact and no private release: whoever sees them learns of the records behind them."
INDEPENDENT = "Intervals take examples as independent; of several records of one person they are too narrow."
NO_CLIENTS = "No test record belongs to a client, so nothing is said by client: the clients' own records were drawn."


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is judged, and on what.

    Attributes:
        plan: resolved.
        setting: simulation or deployment.
        model_digest: SHA-256 of the model's file.
        best: whether it is the one with the best evaluation.
        source: where the records are from.
        owners: client of each record (n,), "" for none; None where records have no clients.
        columns: more of each record (n,), by name of the column.
    """

    plan: Plan
    setting: str
    model_digest: str
    best: bool
    source: Source
    owners: Text | None = None
    columns: Mapping[str, Text] = field(default_factory=dict)


def assess(
    model: torch.nn.Module, data: TestData, subject: Subject, *, by: str | None = None, positive: str | None = None
) -> Evaluation:
    """Judge a model.

    Args:
        model: with its parameters, in evaluation mode.
        data: n > 0 records.
        subject: whose and which.
        by: one of the columns, whose groups are compared.
        positive: name of the class that groups' rates are about; default the last of two, none of more.

    Raises:
        UsageError: there are no such groups or classes.
    """
    card = card_for(subject.plan.data)
    if data.y.ndim > 1:
        if by is not None or positive is not None:
            raise UsageError("--by, --positive: a language model's places have no groups or classes to compare")
        return _language(model, data, subject, card)
    named = _positive(card.classes, positive)
    logits = scores_of(model, data.x, subject.plan.evaluation.batch_size)
    truth, guess = data.y.numpy(), guesses(logits).numpy()
    known, classes = metrics_of(logits, data.y), by_class(truth, guess, card.classes)
    groups = None
    if by is not None:
        groups = groups_of(truth, guess, _groups(subject.columns[by], by, card), column=by, positive=named)
    clients = None
    if subject.owners is not None:
        clients = groups_of(truth, guess, subject.owners, column=CLIENT, positive=named)
    return _facts(
        subject,
        n=len(truth),
        accuracy=share(int((guess == truth).sum()), len(truth)),
        loss=known.get("loss"),
        auc=known.get("auc"),
        balanced_accuracy=classes.balanced_accuracy,
        classes=classes.rows,
        macro=classes.macro,
        weighted=classes.weighted,
        confusion=classes.confusion,
        calibration=calibration(torch.softmax(logits.double(), dim=1).numpy(), truth),
        groups=groups,
        clients=clients,
        remarks=(NOT_PROTECTED, INDEPENDENT, *(() if clients else (NO_CLIENTS,))),
    )


def _language(model: torch.nn.Module, data: TestData, subject: Subject, card: DataCard) -> Evaluation:
    found = next_token(model, data, card.classes, subject.plan.evaluation.batch_size)
    if found is None:
        raise UsageError("no place of the texts has a next token, so there is nothing to judge the model on")
    return _facts(
        subject,
        n=found.n,
        accuracy=found.accuracy,
        loss=found.loss,
        language=found.language,
        remarks=(NOT_PROTECTED, "Tokens of one text depend on each other: the intervals are too narrow."),
    )


def _facts(subject: Subject, **known: object) -> Evaluation:
    nothing: dict[str, object] = {
        "balanced_accuracy": None,
        "auc": None,
        "classes": (),
        "macro": Average(precision=None, recall=None, f1=None),
        "weighted": Average(precision=None, recall=None, f1=None),
        "confusion": None,
        "calibration": None,
        "groups": None,
        "clients": None,
        "language": None,
        "released": None,
    }
    about = {
        "name": subject.plan.name,
        "plan_digest": subject.plan.digest(),
        "model": subject.model_digest,
        "best": subject.best,
        "setting": subject.setting,
        "source": subject.source,
        "protected": False,
    }
    return Evaluation(**about, **(nothing | known))  # type: ignore[arg-type]


def _positive(classes: Sequence[str], asked: str | None) -> tuple[int, str] | None:
    if asked is None:
        return (1, classes[1]) if len(classes) == 2 else None
    if asked not in classes:
        raise UsageError(f"--positive {asked!r}: {did_you_mean(asked, classes)}the classes are {', '.join(classes)}")
    return classes.index(asked), asked


def _groups(values: Text, column: str, card: DataCard) -> Text:
    """The group of each record: a value of the column, or a range of its numbers."""
    of_numbers = ranges(values, card.missing)
    named = values if of_numbers is None else of_numbers
    named = np.where(np.isin(named, [*card.missing, ""]), "missing", named)
    found = len(np.unique(named))
    if found > MOST_VALUES:
        raise UsageError(
            f"--by {column}: has {found} values, too many to compare; give a column of at most {MOST_VALUES}, "
            "or of numbers"
        )
    return named.astype(np.str_)
