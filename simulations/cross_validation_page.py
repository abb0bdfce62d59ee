"""cross-validation.html: the folds as a picture and a table, in the look of the privacy report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.report.catalogue import catalogue
from privacy.report.render import page
from server.assessment.drawings import Point, intervals
from server.assessment.page import shown

if TYPE_CHECKING:
    from simulations.cross_validation import CrossValidation

COLUMNS = ("accuracy", "balanced_accuracy", "f1", "auc", "loss", "perplexity")


def html(result: CrossValidation) -> str:
    """The page."""
    there = [name for name in COLUMNS if any(name in row for row in result.rows.values())]
    points = [_point(client, row) for client, row in result.rows.items()]
    return page(
        "cross_validation.html.j2",
        catalogue("en"),
        package="simulations",
        title=f"{result.name}: cross-validation over clients",
        result=result,
        columns=there,
        spread={name: result.spread(name) for name in there},
        picture=intervals(points, label="Accuracy at each client that was left out", axis="accuracy, 95 %"),
        shown=shown,
    )


def _point(client: str, row: dict[str, float]) -> Point:
    value = row.get("accuracy")
    if value is None:
        return Point(name=client, value=None, words="no records")
    low, high = row.get("accuracy_low", value), row.get("accuracy_high", value)
    return Point(name=client, value=value, low=low, high=high, words=f"{value:.3f}")
