"""Which bins a statistics plan has, and which one of each column a record lies in.

Bins follow from the plan and from the card's public bounds and values: nothing of them is computed from records. Every
record lies in exactly one bin of each column, whatever it holds, so that it moves each column by one count and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from security.errors import UsageError, did_you_mean
from shared_models.cards import DataCard, card_for
from shared_models.plan import Plan
from shared_models.plan_data import Column, NumericColumn
from shared_models.plan_statistics import MOST_BINS, StatisticsPlan, statistics_of

MISSING: Final = "(missing)"
OTHER: Final = "(other or missing)"
COUNTS: Final = "counts"
"""The one array that a statistics plan is about."""

LABEL: Final = "label"
"""How the classes of data are called that has no target column."""

MOST_COUNTS: Final = 1 << 20
"""Of all columns together."""

_MILLIONTH: Final = 1e-6  # of a column's span: float32 keeps a value less exactly than its edge is known

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """The bins of one column, as they lie in the vector of all counts.

    Attributes:
        column: its name.
        kind: what it holds.
        names: of each bin; the last one of a number is for missing values, that of a category for any other value and
            missing ones. Classes have none beside their own.
        edges: of a number, one more than it has bins for values: from the lower bound to the upper one; else none.
        start: place of its first bin in the vector.
    """

    column: str
    kind: Literal["number", "category", "classes"]
    names: tuple[str, ...]
    edges: tuple[float, ...]
    start: int

    @property
    def size(self) -> int:
        """How many bins there are."""
        return len(self.names)

    @property
    def places(self) -> slice:
        """Its bins in the vector."""
        return slice(self.start, self.start + self.size)


def target_name(card: DataCard) -> str:
    """What the classes are called as a column."""
    return card.target or LABEL


def countable(card: DataCard) -> tuple[str, ...]:
    """The columns of data that can be counted: a table's, and the classes."""
    return (*card.columns, target_name(card))


def resolved_statistics(plan: Plan) -> StatisticsPlan:
    """The plan's table with its columns written out, once all of it fits the card.

    Raises:
        UsageError: a column is not there, is no number or can't be cut so; or there are too many counts.
    """
    found, card = statistics_of(plan), card_for(plan.data)
    if card.at_each_place:
        raise UsageError(f"statistics: '{plan.data.name}' has a label at each place of a record; nothing is counted")
    known = countable(card)
    columns = known if found.columns is None else found.columns
    for name in columns:
        if name not in known:
            raise UsageError(
                f"statistics.columns: {did_you_mean(name, known)}the card has no column {name!r}; allowed: "
                f"{', '.join(known)}"
            )
    for name, cuts in found.edges.items():
        column = card.columns.get(name)
        if name not in columns or not isinstance(column, NumericColumn):
            raise UsageError(f"statistics.edges.{name}: is no number that is counted; remove it")
        if not column.low < cuts[0] <= cuts[-1] < column.high:
            raise UsageError(
                f"statistics.edges.{name}: cuts must lie between the public bounds {column.low:g} and {column.high:g}"
            )
    found = found.model_copy(update={"columns": columns})
    _histograms(card, found)
    return found


def histograms_of(plan: Plan) -> tuple[Histogram, ...]:
    """The bins of a resolved plan, column by column in the order of `statistics.columns`.

    Raises:
        UsageError: as `resolved_statistics`: a stranger's plan may say anything.
    """
    return _histograms(card_for(plan.data), resolved_statistics(plan))


def size_of_histograms(plan: Plan) -> int:
    """How many counts there are; raises as `histograms_of`."""
    last = histograms_of(plan)[-1]
    return last.start + last.size


def build_counts(plan: Plan) -> nn.Module:
    """What takes the place of a network: the vector of counts, zero at first; its layout is the plan's."""
    module = nn.Module()
    module.register_parameter(COUNTS, nn.Parameter(torch.zeros(size_of_histograms(plan))))
    return module


def count_records(plan: Plan, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64]) -> Counts:
    """How many records lie in each bin: exact, not to be released as they are.

    Args:
        plan: resolved.
        x: (n, *shape), of a table as `encode_table` gives it.
        y: (n,), classes.

    Returns:
        Whole numbers (`size_of_histograms`,); those of one column add up to n.
    """
    card, found = card_for(plan.data), histograms_of(plan)
    starts = _starts(card.columns)
    total = np.zeros(size_of_histograms(plan), dtype=np.int64)
    for one in found:
        if one.kind == "classes":
            bins = np.clip(y, 0, one.size - 1)
        else:
            start, column = starts[one.column], card.columns[one.column]
            bins = (
                _bins_of_number(x[:, start], x[:, start + 1], column, one)
                if isinstance(column, NumericColumn)
                else x[:, start : start + one.size].argmax(axis=1)
            )
        total[one.places] = np.bincount(bins, minlength=one.size)
    return total


def _histograms(card: DataCard, statistics: StatisticsPlan) -> tuple[Histogram, ...]:
    found: list[Histogram] = []
    start = 0
    for name in statistics.columns or ():
        one = _histogram(card, statistics, name, start)
        if one.size > 2 * MOST_BINS:
            raise UsageError(f"statistics.columns: {name!r} has {one.size} values, more than {2 * MOST_BINS}")
        found.append(one)
        start += one.size
        if start > MOST_COUNTS:  # at once: a stranger's plan may ask for any number, and each has a name
            raise UsageError(f"statistics: {start} counts are more than {MOST_COUNTS}; give fewer columns or bins")
    return tuple(found)


def _histogram(card: DataCard, statistics: StatisticsPlan, name: str, start: int) -> Histogram:
    if name == target_name(card):
        return Histogram(column=name, kind="classes", names=card.classes, edges=(), start=start)
    column = card.columns[name]
    if not isinstance(column, NumericColumn):
        names = (*(value.strip() for value in column.values), OTHER)
        return Histogram(column=name, kind="category", names=names, edges=(), start=start)
    cuts = statistics.edges.get(name)
    edges = (
        tuple(float(edge) for edge in np.linspace(column.low, column.high, statistics.bins + 1))
        if cuts is None
        else (column.low, *cuts, column.high)
    )
    names = (*(f"{a:g} to {b:g}" for a, b in pairwise(edges)), MISSING)
    return Histogram(column=name, kind="number", names=names, edges=edges, start=start)


def _bins_of_number(
    scaled: npt.NDArray[np.float32], missing: npt.NDArray[np.float32], column: NumericColumn, one: Histogram
) -> npt.NDArray[np.int64]:
    """The bin of each record: [edge, next edge) of its value, which is within the bounds; the last one if missing."""
    span = column.high - column.low
    with np.errstate(invalid="ignore", over="ignore"):
        values = column.low + (scaled.astype(np.float64) / column.spread + 1) / 2 * span
        inner = np.asarray(one.edges[1:-1])
        bins = np.searchsorted(inner, values + _MILLIONTH * span, side="right")
    bins = np.where((missing != 0) | ~np.isfinite(values), one.size - 1, np.clip(bins, 0, one.size - 2))
    return bins.astype(np.int64)


def _starts(columns: Mapping[str, Column]) -> dict[str, int]:
    """Where each column begins in an encoded record (`shared_models.cards.table_width`)."""
    starts, start = {}, 0
    for name, column in columns.items():
        starts[name] = start
        start += 2 if isinstance(column, NumericColumn) else len(column.values) + 1
    return starts
