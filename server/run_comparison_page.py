"""The page of `veil compare`: a table of runs, and their curves in one plot. In English only."""

from __future__ import annotations

from typing import Any, Final

from markupsafe import Markup

from privacy.report.catalogue import catalogue
from privacy.report.charts import svg
from privacy.report.charts.lines import Axis, Chart, Series, draw
from privacy.report.render import page
from server.run_comparison import RunComparison, RunRow

_STYLES: Final = tuple(f"run-{number}" for number in range(8))


def html(found: RunComparison) -> str:
    """The page."""
    return page(
        "run_comparison.html.j2",
        catalogue("en"),
        package="server",
        title="Runs compared",
        found=found,
        draw=_Drawings(found),
        value=value,
        size=size,
        title_of=title_of,
        number=number,
    )


def number(shown: float | None) -> str:
    """A figure, or a dash."""
    return "–" if shown is None else f"{shown:.4g}"


def value(shown: Any) -> str:
    """A plan's value."""
    return "–" if shown is None else f"{shown:.4g}" if isinstance(shown, float) else str(shown)


def title_of(metric: str) -> str:
    """A metric's name."""
    return "AUC" if metric == "auc" else metric.replace("_", " ").capitalize()


def size(count: int | None) -> str:
    """Bytes."""
    if count is None:
        return "–"
    return f"{count / 1e6:.3g} MB" if count >= 1e6 else f"{count / 1e3:.3g} kB"


class _Drawings:
    """The plots; a run has the same line in both."""

    def __init__(self, found: RunComparison) -> None:
        self._found = found
        self._style = {row.name: _STYLES[place % len(_STYLES)] for place, row in enumerate(found.rows)}

    def by_round(self) -> Markup | None:
        """The metric over the rounds."""
        lines = {row.name: [(float(point.round), point.value) for point in row.curve] for row in self._rows()}
        return self._draw(lines, "round", whole=True)

    def by_epsilon(self) -> Markup | None:
        """The metric over what was spent; of the runs whose epsilon is about the same as the first private one's."""
        private = [row for row in self._rows() if row.claim != "none"]
        alike = [row for row in private if _about(row) == _about(private[0])]
        lines = {
            row.name: [(point.epsilon, point.value) for point in row.curve if point.epsilon is not None]
            for row in alike
        }
        return self._draw(lines, "epsilon spent, largest client", whole=False)

    def left_out(self) -> list[str]:
        """Private runs that the second plot lacks."""
        private = [row for row in self._rows() if row.claim != "none"]
        return [row.name for row in private if _about(row) != _about(private[0])]

    def legend(self, by_epsilon: bool) -> list[tuple[Markup, str]]:
        """Each run's line, of those that a plot has."""
        lacking = {row.name for row in self._rows() if row.claim == "none"} | set(self.left_out())
        shown = [row.name for row in self._rows() if not by_epsilon or row.name not in lacking]
        return [(svg.swatch(self._style[name]), name) for name in shown]

    def _rows(self) -> tuple[RunRow, ...]:
        return self._found.rows

    def _draw(self, lines: dict[str, list[tuple[float, float]]], across: str, *, whole: bool) -> Markup | None:
        lines = {name: points for name, points in lines.items() if points}
        if not lines:
            return None
        xs = [x for points in lines.values() for x, _ in points]
        ys = [y for points in lines.values() for _, y in points]
        margin = max(0.02, 0.1 * (max(ys) - min(ys)))
        metric = title_of(self._found.metric)
        bounded = self._found.metric != "loss"
        chart = Chart(
            label=f"{metric} over {across} for {len(lines)} runs",
            x=Axis(name=across, low=0, high=max(xs) or 1.0, show=lambda at: f"{at:g}", whole=whole),
            y=Axis(
                name=metric,
                low=max(0.0, min(ys) - margin),
                high=min(1.0, max(ys) + margin) if bounded else max(ys) + margin,
                show=lambda at: f"{at:.3g}",
            ),
            # A single point is no line: a ring is.
            series=[Series(name=name, points=points, style=self._style[name]) for name, points in lines.items()],
            points=[(*points[0], "") for points in lines.values() if len(points) == 1],
        )
        return draw(chart)


def _about(row: RunRow) -> tuple[object, ...]:
    return row.unit, row.trust, row.relation, row.delta
