"""A drawing of what can be afforded: epsilon against rounds, a line for each noise multiplier, and the budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from privacy.planning import Offer
from privacy.report.charts.lines import WIDE, Axis, Chart, Series, draw_one
from privacy.report.charts.svg import file


def draw_offers(offers: Sequence[Offer], rounds: Sequence[int], budget: float) -> Markup:
    """A whole SVG file.

    Args:
        offers: with the epsilons after each of `rounds`.
        rounds: in rising order.
        budget: epsilon, drawn as a line; what costs three times as much is left out.
    """
    top = 3 * budget
    series, ends = [Series(name="budget", points=[(0, budget), (rounds[-1], budget)], style="limit")], []
    for offer in offers:
        priced = zip(rounds, offer.epsilons, strict=True)
        points = [(float(times), value) for times, value in priced if math.isfinite(value) and value <= top]
        if points:
            series.append(Series(name=f"{offer.noise_multiplier:g}", points=points, style="main", marks=True))
            ends.append((*points[-1], f"noise {offer.noise_multiplier:g}"))
    chart = Chart(
        label=f"Epsilon against rounds for {len(offers)} noise multipliers; the budget is {budget:g}",
        x=Axis(name="rounds", low=0, high=rounds[-1], show=lambda value: f"{value:g}", whole=True),
        y=Axis(name="epsilon", low=0, high=top, show=lambda value: f"{value:g}"),
        series=series,
        points=ends,
    )
    return file(draw_one(chart, *WIDE))
