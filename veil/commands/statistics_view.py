"""Released statistics as tables for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import RenderableType
from rich.table import Table

_MOST_VALUES = 6  # of a category that one line names


def statistics_tables(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Tables of `statistics.json`: numbers with their error bars, then categories and classes."""
    yield (
        f"about {_whole(found['records'])} records (± {_whole(2 * found['records_noise'])}) at {found['clients']} "
        f"clients; noise of deviation {found['noise']:.4g} in each count"
    )
    numbers = [one for one in found["columns"] if one["kind"] == "number"]
    if numbers:
        yield _numbers(numbers)
    others = [one for one in found["columns"] if one["kind"] != "number"]
    if others:
        yield _values(others)


def _numbers(columns: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("number", "mean", "±", "deviation", "quarter", "half", "3 quarters", "missing"):
        table.add_column(title, justify="left" if title == "number" else "right", no_wrap=True)
    for one in columns:
        number = one["number"]
        if number is None:
            table.add_row(one["column"], "lost in noise", *["-"] * 5, _whole(one["missing"]))
            continue
        quarters = [f"{q['value']:.4g}" for q in number["quantiles"] if q["part"] in (0.25, 0.5, 0.75)]
        figures = (number["mean"], number["mean_bar"], number["deviation"])
        table.add_row(one["column"], *(f"{value:.4g}" for value in figures), *quarters, _whole(one["missing"]))
    return table


def _values(columns: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("category", no_wrap=True)
    table.add_column("counts, the largest first; noise may make them negative")
    for one in columns:
        pairs = sorted(zip(one["counts"], one["names"], strict=True), reverse=True)
        text = ", ".join(f"{name} {_whole(count)}" for count, name in pairs[:_MOST_VALUES])
        more = len(pairs) - _MOST_VALUES
        table.add_row(one["column"], text + (f", and {more} more" if more > 0 else ""))
    return table


def _whole(value: float) -> str:
    return f"{value:.0f}"
