"""SVG pieces: scales, ticks, elements.

Colours stand twice: as attributes for print (the light theme; a PDF printer doesn't style inline SVG) and as classes,
which the page's style sheet overrides for light and dark. No `style` attribute: the page's policy forbids them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

INK, MUTED, RULE, ACCENT, LIMIT, TRACK = "#1d2126", "#5a626c", "#d5d9de", "#1c5a8c", "#9a3412", "#e6e9ec"
FONT = (
    "system-ui, 'Segoe UI', Roboto, 'Noto Sans', 'Liberation Sans', 'DejaVu Sans', 'Noto Sans CJK SC', 'PingFang SC', "
    "'Microsoft YaHei', sans-serif"
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels, linear or logarithmic.

    Attributes:
        low, high: values at both ends.
        start, end: their pixels.
        log: whether equal ratios are equal distances; then `low` > 0.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        part = ((math.log(value) if self.log else value) - low) / ((high - low) or 1.0)
        return self.start + part * (self.end - self.start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """At most about `most` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: int, high: int, most: int) -> list[float]:
    """The same, whole numbers only."""
    found = [value for value in ticks(low, high, most) if value == int(value)]
    return found if len(found) > 1 else [float(low), float(high)] if high > low else [float(low)]


def powers(low: float, high: float, most: int) -> list[float]:
    """Powers of ten from `low` to `high`, thinned to about `most`; where they are two at most, 1, 2, 5 times them."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        between = [factor * 10.0**exponent for exponent in range(first - 1, last + 1) for factor in (1, 2, 5)]
        return [value for value in between if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
    step = max(1, math.ceil((last - first + 1) / most))
    return [10.0**exponent for exponent in range(first, last + 1, step)]


def pixel(value: float) -> str:
    """A coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def element(name: str, content: Markup | str | None = None, /, **attributes: object) -> Markup:
    """One element; `_` in names of attributes stands for `-`, `class_` for `class`."""
    pairs = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), pixel(value) if isinstance(value, float) else value
        )
        for key, value in attributes.items()
        if value is not None
    )
    if content is None:
        return Markup("<{}{}/>").format(name, pairs)
    return Markup("<{}{}>{}</{}>").format(name, pairs, content, name)


def text(content: object, x: float, y: float, *, anchor: str = "start", size: float = 12, muted: bool = True) -> Markup:
    """Words at a place."""
    return element(
        "text",
        escape(content),
        x=x,
        y=y,
        text_anchor=anchor,
        font_size=size,
        fill=MUTED if muted else INK,
        class_="c-muted-fill" if muted else "c-ink-fill",
    )


def polyline(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """A line in one of the styles of `STYLES`."""
    colour, class_, width, dash = STYLES[style]
    return element(
        "polyline",
        points=" ".join(f"{pixel(x)},{pixel(y)}" for x, y in points),
        fill="none",
        stroke=colour,
        stroke_width=width,
        stroke_dasharray=dash,
        stroke_linejoin="round",
        stroke_linecap="round",
        class_=class_,
    )


STYLES: dict[str, tuple[str, str, str, str | None]] = {
    "main": (ACCENT, "c-accent", "2.5", None),
    "second": (MUTED, "c-muted", "1.75", None),
    "third": (MUTED, "c-muted", "1.75", "1 4"),
    "forecast": (ACCENT, "c-accent", "2", "5 5"),
    "limit": (LIMIT, "c-limit", "1.5", "9 4"),
    "broken": (LIMIT, "c-limit", "2", "2 5"),
    "chance": (MUTED, "c-muted", "1.25", "3 4"),
    # Of several runs beside each other.
    "run-0": (ACCENT, "c-accent", "2.5", None),
    "run-1": (LIMIT, "c-limit", "2.25", "9 4"),
    "run-2": (MUTED, "c-muted", "2.25", None),
    "run-3": (INK, "c-ink", "2.25", "2 5"),
    "run-4": (ACCENT, "c-accent", "2.25", "4 4"),
    "run-5": (LIMIT, "c-limit", "2.25", None),
    "run-6": (MUTED, "c-muted", "2.25", "9 4"),
    "run-7": (INK, "c-ink", "1.5", None),
}
"""Colour, class, width and dashes: lines differ by more than colour."""


def document(content: Markup, width: float, height: float, *, label: str, class_: str, **data: object) -> Markup:
    """A whole drawing that a screen reader knows by `label`."""
    return element(
        "svg",
        content,
        viewBox=f"0 0 {pixel(width)} {pixel(height)}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
        font_family=FONT,
        class_=class_,
        **data,
    )


def file(drawing: Markup) -> Markup:
    """One drawing as a file of its own."""
    return Markup('<?xml version="1.0" encoding="UTF-8"?>\n') + drawing.replace(
        "<svg ", Markup('<svg xmlns="http://www.w3.org/2000/svg" '), 1
    )


def swatch(style: str) -> Markup:
    """A piece of a line, for a legend."""
    line = polyline([(2, 6), (26, 6)], style)
    return element("svg", line, viewBox="0 0 28 12", width=28, height=12, aria_hidden="true", class_="swatch")
