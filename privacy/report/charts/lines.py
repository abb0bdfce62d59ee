"""Line charts: some series over one axis, in a wide and a narrow drawing of which a page shows one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.svg import Scale, document, element, polyline, text

WIDE, NARROW = (640.0, 300.0), (344.0, 250.0)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line.

    Attributes:
        name: in the legend.
        points: x and y, in order.
        style: one of `svg.STYLES`.
        marks: whether each point is marked.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: str
    marks: bool = False


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis.

    Attributes:
        name: printed beside it.
        low, high: its ends.
        show: how a tick is written.
        log: whether it is logarithmic.
        whole: whether ticks are whole numbers.
    """

    name: str
    low: float
    high: float
    show: Callable[[float], str]
    log: bool = False
    whole: bool = False

    def ticks(self, most: int) -> list[float]:
        """Where it is labelled."""
        if self.log:
            return svg.powers(self.low, self.high, most)
        if self.whole:
            return svg.whole_ticks(int(self.low), int(self.high), most)
        return svg.ticks(self.low, self.high, most)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a line chart shows.

    Attributes:
        label: for a screen reader.
        x, y: its axes.
        series: its lines, the most important last: it is drawn on top.
        readings: x, y and words of each place a reader can ask for.
        points: places marked by a ring, with a name.
        stamp: printed above it where its figures are no claim.
    """

    label: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    readings: Sequence[tuple[float, float, str]] = ()
    points: Sequence[tuple[float, float, str]] = ()
    stamp: str | None = None


def draw(chart: Chart) -> Markup:
    """Both drawings; the style sheet shows one of them."""
    return _draw(chart, *WIDE, "chart wide") + _draw(chart, *NARROW, "chart narrow")


def draw_small(chart: Chart) -> Markup:
    """One drawing that fits a narrow page, and half a wide one."""
    return _draw(chart, *NARROW, "chart")


def draw_one(chart: Chart, width: float, height: float) -> Markup:
    """One drawing of a given size."""
    return _draw(chart, width, height, "chart")


def _draw(chart: Chart, width: float, height: float, class_: str) -> Markup:
    y_ticks = chart.y.ticks(5)
    left = 16 + 7.0 * max(len(chart.y.show(tick)) for tick in y_ticks)
    x = Scale(low=chart.x.low, high=chart.x.high, start=left, end=width - 18, log=chart.x.log)
    y = Scale(low=chart.y.low, high=chart.y.high, start=height - 44, end=30, log=chart.y.log)
    parts = [text(chart.y.name, 2, 14)]
    for tick in y_ticks:
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), stroke=svg.RULE, class_="c-rule"))
        parts.append(text(chart.y.show(tick), x.start - 8, y(tick) + 4, anchor="end"))
    x_ticks = chart.x.ticks(8 if width > 500 else 5)
    for tick in x_ticks:
        parts.append(text(chart.x.show(tick), x(tick), height - 25, anchor="middle"))
    parts.append(text(chart.x.name, x.end, height - 6, anchor="end"))
    if chart.stamp is not None:
        parts.append(text(chart.stamp, x.end, 14, anchor="end"))
    for series in chart.series:
        places = [(x(a), y(b)) for a, b in series.points]
        parts.append(polyline(places, series.style))
        if series.marks and len(places) <= 40:
            parts += [element("circle", cx=a, cy=b, r="3", fill=svg.ACCENT, class_="c-accent-fill") for a, b in places]
    for a, b, name in chart.points:
        parts.append(
            element("circle", cx=x(a), cy=y(b), r="5", fill="none", stroke=svg.INK, stroke_width="2", class_="c-ink")
        )
        right = x(a) > x.end - 110
        place = (x(a) - 10, y(b) + 20) if right else (x(a) + 10, y(b) - 9)
        parts.append(text(name, *place, anchor="end" if right else "start", muted=False))
    data = {}
    if chart.readings:
        data = {
            "data_x": " ".join(svg.pixel(x(a)) for a, _, _ in chart.readings),
            "data_y": " ".join(svg.pixel(y(b)) for _, b, _ in chart.readings),
        }
    return document(Markup("").join(parts), width, height, label=chart.label, class_=class_, **data)
