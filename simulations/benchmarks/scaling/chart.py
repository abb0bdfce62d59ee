"""A drawing: milliseconds a client in a warm round, by how many clients there are, all of them in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from privacy.report.charts.lines import Axis, Chart, Series, draw_one
from simulations.benchmarks.engines.chart import as_file
from simulations.benchmarks.scaling.cases import Case, Measured

_WIDTH, _HEIGHT = 640.0, 360.0
_STYLES: Mapping[tuple[str, bool], str] = {
    ("inline", False): "main",
    ("ray", False): "second",
    ("inline", True): "forecast",
    ("ray", True): "chance",
}


def draw(found: Sequence[Measured]) -> Markup:
    """A whole SVG file: a line for each engine, with and without privacy; what was not measured has no point.

    Raises:
        ValueError: nothing was measured with everybody in each round.
    """
    lines = {kind: points for kind in _STYLES if (points := _points(found, *kind))}
    if not lines:
        raise ValueError("no figures of rounds with all clients")
    places = [point for points in lines.values() for point in points]
    most = max(cost for _, cost in places)
    chart = Chart(
        label="Cost of a client by the number of clients",
        x=Axis(
            name="clients, all of them in each round",
            low=min(clients for clients, _ in places) / 1.3,
            high=max(clients for clients, _ in places) * 1.3,
            show=lambda value: f"{value:,.0f}",
            log=True,
        ),
        y=Axis(
            name="milliseconds a client, warm round", low=0.0, high=_round_up(most), show=lambda value: f"{value:g}"
        ),
        series=[
            Series(name=_name(kind), points=points, style=_STYLES[kind], marks=True) for kind, points in lines.items()
        ],
        points=[(*points[-1], _name(kind)) for kind, points in lines.items()],
    )
    return as_file(draw_one(chart, _WIDTH, _HEIGHT))


def _points(found: Sequence[Measured], engine: str, private: bool) -> list[tuple[float, float]]:
    return sorted(
        (float(one.case.clients), 1000 * one.client)
        for one in found
        if one.client is not None
        and one.case == Case(engine=engine, clients=one.case.clients, cohort=one.case.clients, private=private)
    )


def _name(kind: tuple[str, bool]) -> str:
    return f"{kind[0]}, DP-SGD" if kind[1] else kind[0]


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 and so on, with some room."""
    power = 10.0 ** math.floor(math.log10(1.1 * value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= 1.1 * value)
