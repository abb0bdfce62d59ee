"""The charts of a report, from its facts and in its language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from markupsafe import Markup

from privacy.report import figures
from privacy.report.accounts import BalanceFacts, Path, Point
from privacy.report.catalogue import Catalogue, exact, of_100, percent, power, upper
from privacy.report.charts import bars, lines
from privacy.report.charts.lines import Axis, Chart, Series
from privacy.report.charts.svg import swatch
from privacy.report.facts import Utility

PROFILE_FROM = 40
"""Clients from which on a chart of all of them stands above their table."""

Legend = list[tuple[Markup, Markup]]
"""Pieces of line with their names."""

Drawn = tuple[Markup, Legend, list[str]]
"""A drawing, its legend, and what a reader can ask of it in words."""


class Drawings:
    """Charts in one language. Each returns the drawing, its legend and its readings, or None where there is none."""

    def __init__(self, t: Catalogue) -> None:
        self._t = t

    def paths(self, balance: BalanceFacts) -> Drawn | None:
        """How accounts grew, with budget and forecast."""
        if not balance.paths:
            return None
        t, fraction = self._t.plain, balance.measure == "fraction"
        show = percent if fraction else upper
        names, first = {"largest": "main", "median": "second", "lowest": "third"}, balance.paths[0]
        series = [
            Series(name=self._name(path), points=_places(path.points), style=names[path.which], marks=path is first)
            for path in balance.paths
        ]
        readings: list[tuple[float, float, str]] = []
        last = max(figures.longest_path(balance.paths), balance.planned or 1, 2)
        kind = "reading_ledger" if fraction else "reading"
        for point in first.points:
            readings.append((point.at, point.value, t(f"rounds.{kind}", at=point.at, epsilon=show(point.value))))
        if first.forecast:
            series.append(Series(name=t("rounds.forecast"), points=_places(first.forecast), style="forecast"))
            for point in first.forecast[1:]:
                words = t("rounds.reading_forecast", at=point.at, epsilon=show(point.value))
                readings.append((point.at, point.value, words))
        high = max(point.value for path in balance.paths for point in (*path.points, *path.forecast))
        line = balance.budget_line
        if line is not None:
            name = t("rounds.limit") if fraction else t("rounds.budget", epsilon=exact(line))
            if first.client is not None and len({one.budget for one in balance.accounts}) > 1:
                name = t("rounds.client", which=name, client=first.client)
            series.append(Series(name=name, points=[(0, line), (last, line)], style="limit"))
            high = max(high, line)
        chart = Chart(
            label=t(
                "rounds.aria",
                y=t("rounds.y_ledger" if fraction else "rounds.y"),
                x=t("rounds.x_ledger" if fraction else "rounds.x"),
                epsilon=show(first.points[-1].value),
            ),
            x=Axis(name=t("rounds.x_ledger" if fraction else "rounds.x"), low=0, high=last, show=_plain, whole=True),
            y=Axis(
                name=t("rounds.y_ledger" if fraction else "rounds.y"),
                low=0.0,
                high=high * 1.05,
                show=percent if fraction else _plain,
            ),
            series=series[::-1],
            readings=readings,
        )
        return self._finished(chart, series, balance)

    def curve(self, balance: BalanceFacts) -> Drawn | None:
        """Epsilon over delta."""
        if len(balance.curve) < 2:
            return None
        t = self._t.plain
        points = [(point.delta, point.epsilon) for point in balance.curve]
        claimed = next((point for point in points if point[0] == balance.basis.delta), None)
        readings = [(x, y, t("curve.reading", delta=power(x), epsilon=upper(y))) for x, y in points]
        series = [Series(name=t("curve.series"), points=points, style="main")]
        chart = Chart(
            label=t("curve.aria", high=upper(points[0][1]), low=upper(points[-1][1])),
            x=Axis(name=t("curve.x"), low=points[0][0], high=points[-1][0], show=power, log=True),
            y=Axis(name=t("curve.y"), low=0.0, high=max(y for _, y in points) * 1.05, show=_plain),
            series=series,
            readings=readings,
            points=[(*claimed, self._as_claimed(t("curve.point", epsilon=upper(claimed[1])), balance))]
            if claimed
            else [],
        )
        return self._finished(chart, [], balance)

    def roc(self, balance: BalanceFacts) -> Drawn | None:
        """What the best attacker finds, over his false alarms."""
        meaning = balance.meaning
        if meaning is None:
            return None
        t = self._t.plain
        points = [(point.false_positives, point.true_positives) for point in meaning.roc]
        readings = [(x, y, t("meaning.reading", x=percent(x), y=percent(y))) for x, y in points if x in _ROC_READINGS]
        series = [
            Series(name=t("meaning.series"), points=points, style="main"),
            Series(name=t("meaning.chance"), points=[(0, 0), (1, 1)], style="chance"),
        ]
        chart = Chart(
            label=t("meaning.aria"),
            x=Axis(name=t("meaning.x"), low=0.0, high=1.0, show=percent),
            y=Axis(name=t("meaning.y"), low=0.0, high=1.0, show=percent),
            series=series[::-1],
            readings=readings,
        )
        return self._finished(chart, series, balance, draw=lines.draw_small)

    def scale(self, balance: BalanceFacts) -> Markup | None:
        """Right answers of a hundred."""
        if balance.meaning is None:
            return None
        best = 50 + 50 * balance.meaning.advantage
        shown = of_100(best / 100)
        return bars.scale_of_100(
            50.0,
            best,
            names=(self._t.plain("meaning.blind"), self._t.plain("meaning.best")),
            label=self._t.plain("meaning.scale_aria", success=shown),
            values=("50", shown),
            broken=balance.verdict.status == "withdrawn",
        )

    def profile(self, balance: BalanceFacts) -> Drawn | None:
        """All clients in the order of what they have spent, where there are many."""
        fraction = balance.measure == "fraction"
        known = [one.fraction if fraction else one.epsilon for one in balance.accounts]
        values = sorted((value for value in known if value is not None), reverse=True)
        if len(values) < PROFILE_FROM:
            return None
        t = self._t.plain
        # A line needs a point only where it changes.
        steps: list[tuple[float, float]] = []
        for place, value in enumerate(values, start=1):
            if len(steps) < 2 or value != steps[-1][1] or steps[-2][1] != value:
                steps.append((place, value))
            else:
                steps[-1] = (place, value)
        series = [Series(name=t("budgets.profile"), points=steps, style="main")]
        budgets = {one.budget for one in balance.accounts}
        line = balance.budget_line if fraction or len(budgets) == 1 else None
        if line is not None:
            name = t("rounds.limit") if fraction else t("rounds.budget", epsilon=exact(line))
            series.append(Series(name=name, points=[(1, line), (len(values), line)], style="limit"))
        high = max(values[0], line or 0.0)
        chart = Chart(
            label=t("budgets.profile"),
            x=Axis(name=t("budgets.profile_x"), low=1, high=len(values), show=_plain, whole=True),
            y=Axis(
                name=t("rounds.y_ledger" if fraction else "rounds.y"),
                low=0.0,
                high=high * 1.05 or 1.0,
                show=percent if fraction else _plain,
            ),
            series=series[::-1],
        )
        return self._finished(chart, series, balance)

    def utility(self, utility: Utility) -> tuple[Markup, Markup | None, list[str], list[str]]:
        """The metric over the rounds, and the epsilon spent by then where there is one."""
        t = self._t.plain
        name = self._t.name("metric", utility.metric)
        points = [(point.round, point.value) for point in utility.points]
        readings = [(x, y, t("utility.reading", round=x, metric=name, value=f"{y:.3f}")) for x, y in points]
        last = max(points[-1][0], 2)
        x = Axis(name=t("utility.x"), low=0, high=last, show=_plain, whole=True)
        high = 1.0 if utility.higher_is_better else max(y for _, y in points) * 1.05
        first = Chart(
            label=t("utility.aria", metric=name, last=f"{points[-1][1]:.3f}"),
            x=x,
            y=Axis(name=name, low=0.0, high=high, show=_plain),
            series=[Series(name=name, points=points, style="main", marks=True)],
            readings=readings,
        )
        spent = [(point.round, point.epsilon) for point in utility.points if point.epsilon is not None]
        if not spent:
            return lines.draw_small(first), None, [words for _, _, words in readings], []
        second = Chart(
            label=t("rounds.aria", y=t("rounds.y"), x=t("rounds.x"), epsilon=upper(spent[-1][1])),
            x=x,
            y=Axis(name=t("utility.epsilon"), low=0.0, high=max(y for _, y in spent) * 1.05 or 1.0, show=_plain),
            series=[Series(name="", points=spent, style="main", marks=True)],
            readings=[(a, b, t("rounds.reading", at=a, epsilon=upper(b))) for a, b in spent],
        )
        words = [[text for _, _, text in one.readings] for one in (first, second)]
        return lines.draw_small(first), lines.draw_small(second), words[0], words[1]

    def _name(self, path: Path) -> str:
        which = self._t.plain(f"rounds.{path.which}")
        return which if path.client is None else self._t.plain("rounds.client", which=which, client=path.client)

    def _finished(
        self,
        chart: Chart,
        legend: Sequence[Series],
        balance: BalanceFacts,
        *,
        draw: Callable[[Chart], Markup] = lines.draw,
    ) -> Drawn:
        """The drawing with its legend and readings, all of which say so where their figures are no claim."""
        status = balance.verdict.status
        if status not in ("simulated", "withdrawn"):
            return draw(chart), _legend(legend), [words for _, _, words in chart.readings]

        def styled(one: Series) -> Series:
            broken = status == "withdrawn" and one.style in ("main", "forecast")
            return replace(one, style="broken", marks=False) if broken else one

        readings = [(x, y, self._as_claimed(words, balance)) for x, y, words in chart.readings]
        chart = replace(
            chart,
            series=[styled(one) for one in chart.series],
            readings=readings,
            stamp=self._t.plain(f"status.{status}"),
        )
        return draw(chart), _legend([styled(one) for one in legend]), [words for _, _, words in readings]

    def _as_claimed(self, words: str, balance: BalanceFacts) -> str:
        status = balance.verdict.status
        return self._t.plain(f"reading.{status}", text=words) if status in ("simulated", "withdrawn") else words


_ROC_READINGS = frozenset({0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5})


def _places(points: Sequence[Point]) -> list[tuple[float, float]]:
    return [(point.at, point.value) for point in points]


def _legend(series: Sequence[Series]) -> Legend:
    return [(swatch(one.style), Markup("{}").format(one.name)) for one in series]


def _plain(value: float) -> str:
    return f"{value:,g}" if abs(value) >= 10_000 else f"{value:g}"
