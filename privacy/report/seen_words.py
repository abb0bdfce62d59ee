"""What a curious server could have seen, in words of one language: for the report, and for the command."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from privacy.report.catalogue import Catalogue, percent
from privacy.report.facts import Reconstruction
from privacy.report.reconstructed import Score, scores

_DECIMALS = {"psnr": 1, "ssim": 2, "ahead": 2}


class SeenWords:
    """The figures of one attack on a round."""

    def __init__(self, found: Reconstruction, t: Catalogue) -> None:
        self._found = found
        self._t = t

    def rows(self) -> list[Score]:
        """The figures, in order."""
        return list(scores(self._found))

    def sees(self) -> Markup:
        """What a server gets of this plan."""
        return self._t(f"seen.sees.{self._found.trust}", clients=self._found.clients)

    def played(self) -> Markup:
        """What was attacked, and how the attacker was helped."""
        found = self._found
        text = self._t("seen.played", n=found.movements, records=found.records, others=found.others)
        help_ = self._t("seen.helped_labels" if found.labels_given else "seen.helped")
        return self._t("page.gap").join([text, help_])

    def way(self, score: Score) -> Markup:
        """How was looked."""
        return self._t.name("seen_way", score.way)

    def measure(self, score: Score) -> Markup:
        """What the figure is."""
        return self._t(f"seen_measure.{score.measure}")

    def figure(self, score: Score) -> str:
        """What was found: never less than it was."""
        return _said(score, score.found, math.ceil)

    def guess(self, score: Score) -> str:
        """What a server finds that looks at nothing: never more than it was."""
        return _said(score, score.guess, math.floor)

    def left_out(self) -> list[Markup]:
        """What wasn't tried, and why."""
        return [self._t.name("seen_left_out", code) for code in self._found.left_out]

    def limits(self) -> Markup:
        """What the figures don't say."""
        return self._t("seen.limits_none" if self._found.trust == "none" else "seen.limits")


def _said(score: Score, value: float | None, way: Callable[[float], int]) -> str:
    if value is None:
        return "–"
    if score.is_part:
        return percent(value, way)
    digits = _DECIMALS[score.measure]
    return f"{way(round(value * 10**digits, 6)) / 10**digits:.{digits}f}"
