"""evaluation.html: one file in the look of the privacy report, which loads nothing. In English only."""

from __future__ import annotations

from typing import Final

from markupsafe import Markup

from privacy.report.catalogue import catalogue
from privacy.report.render import page
from server.assessment import drawings
from server.assessment.calibration import BINS
from server.assessment.facts import LEAST, Evaluation, Groups, Measure, Share

MEASURES: Final[dict[Measure, str]] = {
    "accuracy": "accuracy",
    "positive_rate": "positive rate (demographic parity)",
    "true_positive_rate": "true positive rate (equal opportunity)",
    "false_positive_rate": "false positive rate",
    "equalised_odds": "equalised odds, the larger of both",
}
"""What a gap is in, in words."""

_RATES: Final[tuple[tuple[Measure, str], ...]] = (
    ("accuracy", "accuracy"),
    ("positive_rate", "positive rate"),
    ("true_positive_rate", "true positive rate"),
    ("false_positive_rate", "false positive rate"),
)
_SOURCES: Final = {
    "server": "test records that the server holds",
    "clients": "records that clients hold out, all in one place here: a simulation",
    "file": "records of a file",
    "released": "what clients released of the records that they hold out",
}
MOST_LISTED: Final = 100


def html(facts: Evaluation) -> str:
    """The page."""
    t = catalogue("en")
    return page(
        "evaluation.html.j2",
        t,
        package="server.assessment",
        title=f"{facts.name}: evaluation",
        facts=facts,
        draw=_Drawings(),
        source=_SOURCES[facts.source],
        measures=MEASURES,
        rates=_RATES,
        shown=shown,
        interval=interval,
        least=LEAST,
        bins=BINS,
        most_listed=MOST_LISTED,
    )


def shown(value: float | None) -> str:
    """A figure of three digits, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def interval(share: Share | None) -> str:
    """A share with its interval."""
    return "–" if share is None else f"{share.value:.3f} ({share.low:.3f} to {share.high:.3f})"


class _Drawings:
    """What the template draws."""

    def classes(self, facts: Evaluation) -> Markup:
        points = [drawings.point(row.name, row.recall, few="none") for row in facts.classes]
        return drawings.intervals(points, label="Recall of each class with its interval", axis="recall, 95 %")

    def confusion(self, facts: Evaluation) -> Markup:
        return drawings.confusion(facts.confusion or (), [row.name for row in facts.classes])

    def reliability(self, facts: Evaluation) -> Markup:
        assert facts.calibration is not None
        return drawings.reliability(facts.calibration)

    def rate(self, groups: Groups, measure: Measure, name: str) -> Markup:
        points = [drawings.point(row.name, getattr(row, measure)) for row in groups.rows]
        return drawings.intervals(points, label=f"{name} of each {groups.column}", axis=f"{name}, 95 %")

    def gaps(self, groups: Groups) -> Markup:
        points = [drawings.gap_point(_short(gap.measure), gap) for gap in groups.gaps]
        return drawings.intervals(points, label=f"Largest gaps between {groups.column} groups", axis="gap, 95 %")

    def places(self, facts: Evaluation) -> Markup:
        assert facts.language is not None
        points = [drawings.point(f"{one.first} to {one.last}", one.accuracy) for one in facts.language.places]
        return drawings.intervals(points, label="Accuracy along a text", axis="accuracy by place in the text")


def _short(measure: Measure) -> str:
    return measure.replace("_", " ")
