"""A drawing of the ratios to the floor: a bar a contender, on a logarithmic scale from 1, which is bare training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from privacy.report.charts import svg
from privacy.report.charts.svg import Scale, document, element, text
from simulations.benchmarks.engines.tables import FLOOR, Row

_WIDTH, _LEFT, _RIGHT = 640.0, 150.0, 60.0
_ROW, _GAP, _TOP, _BOTTOM = 20.0, 26.0, 12.0, 44.0
_LEAST = 0.5


def draw(rows: Sequence[Row]) -> Markup:
    """A whole SVG file; a contender without figures is named, without a bar."""
    shown = [row for row in rows if row.contender != FLOOR]
    works = list(dict.fromkeys(row.work for row in shown))
    height = _TOP + _BOTTOM + _ROW * len(shown) + _GAP * len(works)
    ratios = [row.ratio for row in shown if row.ratio is not None]
    most = 10.0 ** math.ceil(math.log10(max([10.0, *ratios])) - 1e-9)
    x = Scale(low=_LEAST, high=most, start=_LEFT, end=_WIDTH - _RIGHT, log=True)
    ends = height - _BOTTOM + 6
    parts = [
        element("line", x1=x(tick), x2=x(tick), y1=_TOP, y2=ends, stroke=svg.RULE, class_="c-rule")
        + text(f"{tick:g}", x(tick), ends + 16, anchor="middle")
        for tick in (_LEAST, *svg.powers(1.0, most, 8))
    ]
    y = _TOP
    for work in works:
        y += _GAP
        parts.append(text(f"work {work}", 2, y - 6, size=13, muted=False))
        for row in (row for row in shown if row.work == work):
            parts.append(text(row.contender, _LEFT - 8, y + 14, anchor="end"))
            parts.append(_bar(row, x, y))
            y += _ROW
    parts.append(text("a warm round over the floor's, bare PyTorch (1)", x.end, height - 6, anchor="end"))
    drawn = document(
        Markup("").join(parts), _WIDTH, height, label="Seconds of a round over the floor's", class_="chart"
    )
    return as_file(drawn)


def as_file(drawn: Markup) -> Markup:
    """A drawing as a file of its own, which has to say what it is."""
    return Markup('<?xml version="1.0" encoding="UTF-8"?>\n') + drawn.replace(
        "<svg ", Markup('<svg xmlns="http://www.w3.org/2000/svg" '), 1
    )


def _bar(row: Row, x: Scale, y: float) -> Markup:
    if row.ratio is None:
        return text("-", x(1.0) + 6, y + 14)
    start, end = sorted((x(1.0), x(max(_LEAST, row.ratio))))
    bar = element(
        "rect", x=start, y=y + 4, width=max(1.0, end - start), height="12", fill=svg.ACCENT, class_="c-accent-fill"
    )
    return bar + text(f"{row.ratio:.2f}", end + 6, y + 14, muted=False)
