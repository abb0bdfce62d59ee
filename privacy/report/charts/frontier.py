"""Scatter chart of several runs: utility over epsilon, with the frontier of each comparable group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privacy.report.accounts import Status
from privacy.report.charts import svg
from privacy.report.charts.lines import NARROW, WIDE, Axis
from privacy.report.charts.svg import Scale, document, element, polyline, text

_CROWDED = 13.0  # pixels, the height of a number

MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One run.

    Attributes:
        number: printed beside it; its row in the table.
        epsilon: its largest.
        value: of the metric.
        group: number of the runs that it may be compared with.
        status: of its claim: filled where it stands, crossed out where it is withdrawn, else hollow.
    """

    number: int
    epsilon: float
    value: float
    group: int
    status: Status


def frontier(dots: Sequence[Dot], *, higher_is_better: bool) -> list[Dot]:
    """Of one group those that no other run beats in both epsilon and utility, by epsilon.

    A withdrawn claim beats nobody.
    """
    best: list[Dot] = []
    sign = 1 if higher_is_better else -1
    for dot in sorted(
        (one for one in dots if one.status != "withdrawn"), key=lambda one: (one.epsilon, -sign * one.value)
    ):
        if not best or sign * dot.value > sign * best[-1].value:
            best.append(dot)
    return best


def draw(
    dots: Sequence[Dot],
    lines: Sequence[tuple[float, str]],
    *,
    x: Axis,
    y: Axis,
    label: str,
    higher_is_better: bool,
) -> Markup:
    """Both drawings. `lines` are values of runs without an epsilon, with their names."""
    parts = [
        _draw(dots, lines, x, y, label, higher_is_better, *size, class_)
        for size, class_ in ((WIDE, "chart wide"), (NARROW, "chart narrow"))
    ]
    return Markup("").join(parts)


def draw_one(
    dots: Sequence[Dot],
    lines: Sequence[tuple[float, str]],
    *,
    x: Axis,
    y: Axis,
    label: str,
    stamp: str,
    higher_is_better: bool,
) -> Markup:
    """The wide drawing alone, as a whole SVG file; `stamp` is printed above it."""
    return svg.file(_draw(dots, lines, x, y, label, higher_is_better, *WIDE, "chart", stamp))


def epsilon_axis(epsilons: Sequence[float], name: str) -> Axis:
    """From zero; logarithmic where the largest is more than eight times the smallest."""
    low, high = min(epsilons), max(epsilons)
    log = high / max(low, 1e-9) > 8
    return Axis(name=name, low=low / 1.5 if log else 0.0, high=high * (1.5 if log else 1.1), show=_plain, log=log)


def value_axis(values: Sequence[float], name: str, *, bounded: bool) -> Axis:
    """Around all values; one that is `bounded` ends at 1."""
    low, high = min(values), max(values)
    margin = max(0.02, (high - low) * 0.15)
    top = high + margin
    return Axis(name=name, low=max(0.0, low - margin), high=min(1.0, top) if bounded else top, show=_plain)


def mark(group: int, status: Status) -> Markup:
    """A mark by itself, for a legend."""
    drawn = _mark(group, 8.0, 8.0, status)
    return element("svg", drawn, viewBox="0 0 16 16", width=16, height=16, aria_hidden="true", class_="swatch")


def _draw(
    dots: Sequence[Dot],
    lines: Sequence[tuple[float, str]],
    x_axis: Axis,
    y_axis: Axis,
    label: str,
    higher: bool,
    width: float,
    height: float,
    class_: str,
    stamp: str | None = None,
) -> Markup:
    y_ticks = y_axis.ticks(5)
    left = 16 + 7.0 * max(len(y_axis.show(tick)) for tick in y_ticks)
    x = Scale(low=x_axis.low, high=x_axis.high, start=left, end=width - 18, log=x_axis.log)
    y = Scale(low=y_axis.low, high=y_axis.high, start=height - 44, end=30)
    parts = [text(y_axis.name, 2, 14), text(x_axis.name, x.end, height - 6, anchor="end")]
    if stamp is not None:
        parts.append(text(stamp, x.end, 14, anchor="end"))
    for tick in y_ticks:
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), stroke=svg.RULE, class_="c-rule"))
        parts.append(text(y_axis.show(tick), x.start - 8, y(tick) + 4, anchor="end"))
    for tick in x_axis.ticks(8 if width > 500 else 5):
        parts.append(text(x_axis.show(tick), x(tick), height - 25, anchor="middle"))
    for value, name in lines:
        parts.append(polyline([(x.start, y(value)), (x.end, y(value))], "chance"))
        parts.append(text(name, x.start + 4, y(value) - 6))
    for group in sorted({dot.group for dot in dots}):
        best = frontier([dot for dot in dots if dot.group == group], higher_is_better=higher)
        if len(best) > 1:
            parts.append(polyline([(x(dot.epsilon), y(dot.value)) for dot in best], "second"))
    parts += [_mark(dot.group, x(dot.epsilon), y(dot.value), dot.status) for dot in dots]
    for dots_here in _crowds(dots, x, y):
        dot = dots_here[0]
        right = x(dot.epsilon) > x.end - 60
        parts.append(
            text(
                ", ".join(str(one.number) for one in dots_here),
                x(dot.epsilon) + (-9 if right else 9),
                y(dot.value) - 7,
                anchor="end" if right else "start",
                size=13,
                muted=False,
            )
        )
    return document(Markup("").join(parts), width, height, label=label, class_=class_)


def _crowds(dots: Sequence[Dot], x: Scale, y: Scale) -> list[list[Dot]]:
    """Dots whose numbers would lie on each other, from the top; they share one place for them."""
    crowds: list[list[Dot]] = []
    for dot in sorted(dots, key=lambda one: (y(one.value), one.number)):
        near = next(
            (
                crowd
                for crowd in crowds
                if abs(x(crowd[0].epsilon) - x(dot.epsilon)) < _CROWDED and y(dot.value) - y(crowd[-1].value) < _CROWDED
            ),
            None,
        )
        if near is None:
            crowds.append([dot])
        else:
            near.append(dot)
    return crowds


def _mark(group: int, x: float, y: float, status: Status) -> Markup:
    shape, r, claimed = MARKS[group % len(MARKS)], 5.0, status == "stands"
    if status == "withdrawn":
        cross = {"stroke": svg.LIMIT, "stroke_width": "2", "class_": "c-limit"}
        one = element("line", x1=x - r, x2=x + r, y1=y - r, y2=y + r, **cross)
        return one + element("line", x1=x - r, x2=x + r, y1=y + r, y2=y - r, **cross)
    style = {
        "fill": svg.ACCENT if claimed else "#ffffff",
        "stroke": svg.ACCENT,
        "stroke_width": "2",
        "class_": "c-accent c-accent-fill" if claimed else "c-accent c-paper-fill",
    }
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=r, **style)
    if shape == "square":
        return element("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, **style)
    corners = {"diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)], "triangle": [(0, -1.2), (1.2, 1), (-1.2, 1)]}[
        shape
    ]
    return element(
        "polygon", points=" ".join(f"{svg.pixel(x + a * r)},{svg.pixel(y + b * r)}" for a, b in corners), **style
    )


def _plain(value: float) -> str:
    return f"{value:.3g}"
