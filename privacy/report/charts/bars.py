"""Bars: one client's budget, and a scale of a hundred."""

from __future__ import annotations

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.svg import Scale, document, element, text


def budget_bar(spent: float | None, budget: float | None, most: float, *, broken: bool) -> Markup:
    """What was spent, on a track as long as the budget; `most` is the full width.

    A withdrawn claim's bar is an outline, one without a bound fills the whole width with dots.
    """
    width, height = 200.0, 10.0
    scale = Scale(low=0.0, high=most or 1.0, start=0.0, end=width)
    track = element(
        "rect", x="0", y="3", width=scale(budget or 0.0), height="4", rx="2", fill=svg.TRACK, class_="c-track-fill"
    )
    length = max(2.0, scale(min(most, spent))) if spent is not None else width
    if broken or spent is None:
        bar = element(
            "rect",
            x="0.75",
            y="2.75",
            width=max(2.0, length - 1.5),
            height="4.5",
            fill="none",
            stroke=svg.LIMIT,
            stroke_width="1.5",
            stroke_dasharray="3 2",
            class_="c-limit",
        )
    else:
        bar = element("rect", x="0", y="2", width=length, height="6", rx="2", fill=svg.ACCENT, class_="c-accent-fill")
    return element(
        "svg",
        track + bar,
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        preserveAspectRatio="none",
        aria_hidden="true",
        class_="bar",
    )


def scale_of_100(
    blind: float, best: float, *, names: tuple[str, str], label: str, values: tuple[str, str], broken: bool
) -> Markup:
    """Right answers of 100: a blind guess's, and what the best attacker adds to it; an outline if that is no claim."""
    width, height = 344.0, 84.0
    x = Scale(low=0.0, high=100.0, start=2.0, end=width - 2)

    def part(start: float, end: float, **style: object) -> Markup:
        return element("rect", x=x(start), y="36", width=x(end) - x(start), height="14", **style)

    gained = (
        {"fill": "none", "stroke": svg.LIMIT, "stroke_dasharray": "3 2", "class_": "c-limit"}
        if broken
        else {"fill": svg.ACCENT, "class_": "c-accent-fill"}
    )
    parts = [
        part(0, 100, rx="3", fill=svg.TRACK, class_="c-track-fill"),
        part(0, blind, rx="3", fill=svg.MUTED, class_="c-muted-fill"),
        part(blind, best, **gained),
        element("line", x1=x(best), x2=x(best), y1="26", y2="56", stroke=svg.INK, stroke_width="2", class_="c-ink"),
        text(f"{names[1]}: {values[1]}", x(best), 18, anchor="end", size=13, muted=False),
        text(f"{names[0]}: {values[0]}", x(blind), 72, anchor="middle", size=13),
        text("0", x(0), 72),
        text("100", x(100), 72, anchor="end"),
    ]
    return document(Markup("").join(parts), width, height, label=label, class_="chart")
