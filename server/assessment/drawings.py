"""Drawings of an evaluation, of the pieces that the privacy report's are made of: each wide and narrow, of which a page
shows one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.lines import NARROW, WIDE
from privacy.report.charts.svg import Scale, document, element, polyline, text
from server.assessment.facts import Calibration, Gap, Share

MOST_ROWS: Final = 40
MOST_CELLS: Final = 30  # classes of which each cell can still be seen
_NUMBERED: Final = 12  # classes whose cells have room for a number
_ROW: Final = 22.0


@dataclass(frozen=True, kw_only=True)
class Point:
    """A value with its interval.

    Attributes:
        name: of its row.
        value, low, high: where they are; None where too little is known.
        words: written at the end of the row.
    """

    name: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    words: str = ""


def point(name: str, share: Share | None, *, few: str = "too few") -> Point:
    """A share as a row."""
    if share is None:
        return Point(name=name, value=None, words=few)
    return Point(name=name, value=share.value, low=share.low, high=share.high, words=f"{share.value:.3f}")


def gap_point(name: str, gap: Gap) -> Point:
    """A gap as a row."""
    return Point(name=name, value=gap.value, low=gap.low, high=gap.high, words=f"{gap.value:.3f}")


def intervals(points: Sequence[Point], *, label: str, axis: str) -> Markup:
    """Values with their intervals, one a row, on a common scale from 0 to 1 or as far as they go.

    Of more than `MOST_ROWS` the lowest are shown; the table beside it has all.
    """
    shown = list(points)
    if len(shown) > MOST_ROWS:
        known = sorted((one for one in shown if one.value is not None), key=lambda one: one.value or 0.0)
        shown = known[:MOST_ROWS]
    return _both(lambda width, class_: _intervals(shown, width, class_, label=label, axis=axis), rows=len(shown))


def _intervals(points: Sequence[Point], width: float, class_: str, *, label: str, axis: str) -> Markup:
    room = 0.34 * width
    most = int(room / 6.9)
    ends = [one.high for one in points if one.value is not None]
    starts = [one.low for one in points if one.value is not None]
    high = 1.0 if max(ends, default=1.0) > 0.5 else _round_up(max(ends))
    low = 0.0 if min(starts, default=0.0) < 0.5 * high else 0.5 * high
    x = Scale(low=low, high=high, start=room + 10, end=width - 52)
    top, bottom = 8.0, 8.0 + _ROW * len(points)
    parts = []
    for tick in svg.ticks(low, high, 5 if width > 500 else 3):
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=top, y2=bottom, stroke=svg.RULE, class_="c-rule"))
        parts.append(text(f"{tick:g}", x(tick), bottom + 16, anchor="middle"))
    parts.append(text(axis, x.end, bottom + 34, anchor="end"))
    for index, one in enumerate(points):
        y = top + _ROW * (index + 0.5)
        parts.append(text(_cut(one.name, most), room, y + 4, anchor="end", muted=False))
        if one.value is not None:
            parts.append(_whisker(x(one.low), x(one.high), y))
            parts.append(element("circle", cx=x(one.value), cy=y, r="4.5", fill=svg.ACCENT, class_="c-accent-fill"))
        parts.append(text(one.words, width, y + 4, anchor="end", size=11 if one.value is None else 12))
    return document(Markup("").join(parts), width, bottom + 40, label=label, class_=class_)


def _whisker(start: float, end: float, y: float) -> Markup:
    line = polyline([(start, y), (end, y)], "main")
    caps = [polyline([(at, y - 4), (at, y + 4)], "main") for at in (start, end)]
    return line + Markup("").join(caps)


def confusion(table: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """True classes in rows, guesses in columns; a cell is as dark as its part of the row."""
    label = f"Confusion matrix of {len(names)} classes"
    return _both(lambda width, class_: _confusion(table, names, width, class_, label=label))


def _confusion(
    table: Sequence[Sequence[int]], names: Sequence[str], width: float, class_: str, *, label: str
) -> Markup:
    classes = len(names)
    longest = min(max(map(len, names)), 14 if width > 500 else 8)
    left = 30.0 + 6.9 * longest
    side = min((width - left - 4) / classes, 62.0)
    top, numbered = 44.0, classes <= (_NUMBERED if width > 500 else 7)
    head = max(1, int(side / 6.9))
    parts = [text("guessed", left + side * classes / 2, 14, anchor="middle")]
    named = classes <= MOST_CELLS
    for index, name in enumerate(names):
        middle = top + side * (index + 0.5)
        if named:
            parts.append(text(_cut(name, longest), left - 8, middle + 4, anchor="end", size=min(12, side), muted=False))
            parts.append(
                text(_cut(name, head), left + side * (index + 0.5), top - 8, anchor="middle", size=min(11, side))
            )
        total = max(1, sum(max(0, cell) for cell in table[index]))
        for place, cell in enumerate(table[index]):
            part = max(0.0, min(1.0, cell / total))
            corner = left + side * place, top + side * index
            parts.append(
                element(
                    "rect",
                    x=corner[0] + 0.5,
                    y=corner[1] + 0.5,
                    width=max(0.5, side - 1),
                    height=max(0.5, side - 1),
                    fill=svg.TRACK,
                    class_="c-track-fill",
                )
            )
            if part > 0:
                parts.append(
                    element(
                        "rect",
                        x=corner[0] + 0.5,
                        y=corner[1] + 0.5,
                        width=max(0.5, side - 1),
                        height=max(0.5, side - 1),
                        fill=svg.ACCENT,
                        fill_opacity=f"{part:.3f}",
                        class_="c-accent-fill",
                    )
                )
            if numbered:
                dark = part > 0.55
                parts.append(
                    element(
                        "text",
                        str(cell),
                        x=corner[0] + side / 2,
                        y=corner[1] + side / 2 + 4,
                        text_anchor="middle",
                        font_size=11 if len(str(cell)) * 6.6 < side else 8,
                        fill="#fcfcfa" if dark else svg.INK,
                        class_="c-paper-fill" if dark else "c-ink-fill",
                    )
                )
    down = top + side * classes / 2
    parts.append(
        element(
            "text",
            "true class",
            x="0",
            y="0",
            text_anchor="middle",
            font_size="12",
            fill=svg.MUTED,
            class_="c-muted-fill",
            transform=f"translate(12 {svg.pixel(down)}) rotate(-90)",
        )
    )
    return document(
        Markup("").join(parts), left + side * classes + 4, top + side * classes + 6, label=label, class_=class_
    )


def reliability(found: Calibration) -> Markup:
    """How often guesses were right over how sure they were, and how many there were of each kind."""
    label = f"Reliability diagram; expected calibration error {found.error:.3f}"
    return _both(lambda width, class_: _reliability(found, width, class_, label=label))


def _reliability(found: Calibration, width: float, class_: str, *, label: str) -> Markup:
    size = min(width - 60, 380.0)
    left, top, strip = 44.0, 24.0, 54.0
    x, y = (
        Scale(low=0.0, high=1.0, start=left, end=left + size),
        Scale(low=0.0, high=1.0, start=top + size * 0.8, end=top),
    )
    below = y.start + 14 + strip
    parts = [text("part that was right", 2, 12)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), stroke=svg.RULE, class_="c-rule"))
        parts.append(text(f"{tick:g}", x.start - 8, y(tick) + 4, anchor="end"))
        parts.append(text(f"{tick:g}", x(tick), below + 16, anchor="middle"))
    parts.append(text("probability of the guess", x.end, below + 34, anchor="end"))
    parts.append(polyline([(x(0), y(0)), (x(1), y(1))], "chance"))
    most = max((one.n for one in found.bins), default=1) or 1
    for one in found.bins:
        height = strip * one.n / most
        if one.n:
            parts.append(
                element(
                    "rect",
                    x=x(one.low) + 1,
                    y=below - max(1.0, height),
                    width=x(one.high) - x(one.low) - 2,
                    height=max(1.0, height),
                    fill=svg.MUTED,
                    class_="c-muted-fill",
                )
            )
        if one.accuracy is not None and one.confidence is not None:
            at = x(one.confidence)
            parts.append(polyline([(at, y(one.accuracy.low)), (at, y(one.accuracy.high))], "main"))
            parts.append(
                element("circle", cx=at, cy=y(one.accuracy.value), r="4.5", fill=svg.ACCENT, class_="c-accent-fill")
            )
    return document(Markup("").join(parts), left + size + 16, below + 40, label=label, class_=class_)


def _both(draw: Callable[[float, str], Markup], *, rows: int = 1) -> Markup:
    if rows == 0:
        return Markup("")
    return draw(WIDE[0], "chart wide") + draw(NARROW[0], "chart narrow")


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: max(1, most - 1)] + "…"


def _round_up(value: float) -> float:
    return next(limit for limit in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 1.0) if limit >= value)
