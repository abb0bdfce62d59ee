"""Released histograms as small pictures side by side: a bar for each count, and how far noise alone reaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.svg import Scale, document, element, text, ticks

_WIDTH, _HEIGHT, _ACROSS = 360.0, 190.0, 2
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 346.0, 34.0, 158.0
_MOST_ROWS = 9  # values of a category that are drawn
_MOST_LETTERS = 22
_TWO_SIDED = 1.96


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One column's counts, as they are drawn.

    Attributes:
        name: of the column.
        counts: with noise; any may be negative.
        names: of each bin.
        edges: of a number, whose last bin is for missing values; else none.
        noise: standard deviation of the noise in each count.
    """

    name: str
    counts: Sequence[int]
    names: Sequence[str]
    edges: Sequence[float]
    noise: float


def draw_histograms(columns: Sequence[Counted], *, title: str) -> Markup:
    """A whole SVG file.

    Args:
        columns: each is one small picture.
        title: one line above them all, which says what they are.
    """
    parts, top = [text(title, 12, 22, size=13, muted=False)], 34.0
    for place, one in enumerate(columns):
        x, y = (place % _ACROSS) * _WIDTH, top + (place // _ACROSS) * _HEIGHT
        drawn = _number(one) if one.edges else _category(one)
        parts.append(element("g", drawn, transform=f"translate({x:g} {y:g})"))
    height = top + -(-len(columns) // _ACROSS) * _HEIGHT
    width = _WIDTH * min(_ACROSS, max(1, len(columns)))
    whole = document(Markup("").join(parts), max(width, 2 * _WIDTH), height, label=title, class_="chart")
    return Markup('<?xml version="1.0" encoding="UTF-8"?>\n') + whole.replace(
        "<svg ", Markup('<svg xmlns="http://www.w3.org/2000/svg" '), 1
    )


def _number(one: Counted) -> Markup:
    """Bins from left to right, all as wide, whatever their edges; missing values are told in words."""
    counts, bar = list(one.counts[:-1]), _TWO_SIDED * one.noise
    high, low = max(*counts, bar, 1.0), min(*counts, -bar, 0.0)
    y = Scale(low=low, high=high, start=_BOTTOM, end=_TOP)
    slot = (_RIGHT - _LEFT) / len(counts)
    parts = [_name(one, f"missing: {one.counts[-1]}"), _band(_LEFT, _RIGHT, y(bar), y(-bar))]
    for tick in ticks(max(low, 0.0), high, 3):
        parts += [_rule(_LEFT, _RIGHT, y(tick)), text(f"{tick:g}", _LEFT - 6, y(tick) + 4, anchor="end", size=11)]
    for place, count in enumerate(counts):
        start, end = sorted((y(0.0), y(count)))
        parts.append(_bar(_LEFT + place * slot + 0.5, start, max(slot - 1, 0.5), end - start))
    every = max(1, round(len(counts) / 4))
    for place in range(0, len(counts) + 1, every):
        parts.append(text(f"{one.edges[place]:g}", _LEFT + place * slot, _BOTTOM + 18, anchor="middle", size=11))
    return Markup("").join(parts)


def _category(one: Counted) -> Markup:
    """The largest counts from above, each beside its value."""
    pairs = sorted(zip(one.counts, one.names, strict=True), key=lambda pair: -pair[0])
    shown, bar = pairs[:_MOST_ROWS], _TWO_SIDED * one.noise
    left, end = _LEFT + 92, _RIGHT - 44
    low = min(*(count for count, _ in pairs), -bar, 0.0)
    x = Scale(low=low, high=max(pairs[0][0], bar, 1.0), start=left, end=end)
    slot = (_BOTTOM - _TOP + 12) / max(len(shown), 4)
    more = f"and {len(pairs) - len(shown)} more" if len(pairs) > len(shown) else ""
    parts = [_name(one, more), _band(x(-bar), x(bar), _TOP, _TOP + slot * len(shown))]
    for place, (count, name) in enumerate(shown):
        start, stop = sorted((x(0.0), x(count)))
        middle = _TOP + (place + 0.5) * slot
        short = name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
        parts += [
            text(short, left - 6, middle + 4, anchor="end", size=11),
            _bar(start, middle - slot * 0.35, stop - start, slot * 0.7),
            text(f"{count}", max(stop, x(bar)) + 5, middle + 4, size=11),
        ]
    return Markup("").join(parts)


def _name(one: Counted, beside: str) -> Markup:
    return text(one.name, 12, 20, size=13, muted=False) + text(beside, _RIGHT, 20, anchor="end", size=11)


def _bar(x: float, y: float, width: float, height: float) -> Markup:
    return element(
        "rect", x=x, y=y, width=max(width, 0.5), height=max(height, 0.5), fill=svg.ACCENT, class_="c-accent-fill"
    )


def _band(x1: float, x2: float, y1: float, y2: float) -> Markup:
    return element("rect", x=x1, y=y1, width=x2 - x1, height=y2 - y1, fill=svg.TRACK, class_="c-track-fill")


def _rule(x1: float, x2: float, y: float) -> Markup:
    return element("line", x1=x1, x2=x2, y1=y, y2=y, stroke=svg.RULE, class_="c-rule")
