"""From noisy counts to means, variances, quantiles and class weights: post-processing, which costs nothing more.

Every count is the true one plus independent noise of a known deviation s, so it may be negative, and sums of counts are
unbiased. With c_i counts at the middles m_i of bins, T their sum: the mean is sum c_i m_i / T, and by the delta method
its deviation from noise is s sqrt(sum (m_i - mean)^2) / T; that of the variance is
s sqrt(sum ((m_i - mean)^2 - var)^2) / T. What the bins hide comes beside it: no value is farther from the middle of its
bin than half its width w_i, so the mean is off by sum c_i w_i / 2T at most. A value out of the public bounds counts as
the bound that it was clipped to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from shared_models.histograms import Histogram

QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)

_SEEN: Final = 4.0
"""Deviations of its noise that a total must have to be divided by: below it nothing is said."""
_TWO_SIDED: Final = 1.959963984540054  # deviations that hold 95 % of a normal

Sums = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Quantile:
    """The value that a part of the records lie below, and the ends of an interval around it.

    Attributes:
        part: of the records.
        value: by linear interpolation within the bin.
        low, high: edges of bins; outside of them it lies only where noise is beyond 95 %, at that one quantile.
    """

    part: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class NumberSummary:
    """What is known of a number, in its own unit.

    Attributes:
        mean: of its values, clipped to the public bounds.
        mean_noise: standard deviation of that from noise.
        mean_bin: how far the bins may have moved it at most.
        deviation: standard deviation of the values.
        deviation_noise: of that, from noise.
        quantiles: rising.
    """

    mean: float
    mean_noise: float
    mean_bin: float
    deviation: float
    deviation_noise: float
    quantiles: tuple[Quantile, ...]

    @property
    def mean_bar(self) -> float:
        """Half the width of the mean's 95 % interval: noise and bins together."""
        return _TWO_SIDED * self.mean_noise + self.mean_bin


@dataclass(frozen=True, kw_only=True)
class ColumnSummary:
    """One column's released counts, and what they say.

    Attributes:
        column, kind, names, edges: as of its histogram.
        counts: with noise, over all clients; any may be negative.
        total: of all of them: an estimate of the number of records.
        missing: those without a value, of a number; of a category those of any other value as well; else None.
        number: None for other kinds, and where noise drowns the counts.
    """

    column: str
    kind: str
    names: tuple[str, ...]
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    total: int
    missing: int | None
    number: NumberSummary | None


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """All that a run of a statistics plan has released.

    Attributes:
        plan: digest of the plan that charged it.
        clients: in the sums.
        noise: standard deviation of the noise in each count.
        records: estimate of the number of records, of all columns together.
        records_noise: standard deviation of that.
        columns: as the plan counts them.
    """

    plan: str
    clients: int
    noise: float
    records: float
    records_noise: float
    columns: tuple[ColumnSummary, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        found = asdict(self)
        for one, column in zip(found["columns"], self.columns, strict=True):
            if column.number is not None:
                one["number"]["mean_bar"] = column.number.mean_bar
        return found


def summarised(histograms: Sequence[Histogram], sums: Sums, *, noise: float, plan: str, clients: int) -> Statistics:
    """What the summed counts of all clients say.

    Args:
        histograms: of the plan.
        sums: noisy counts over all clients, of all bins.
        noise: standard deviation of the noise in each, >= 0.
        plan: its digest.
        clients: how many are in the sums.
    """
    columns = tuple(_column(one, sums[one.places], noise) for one in histograms)
    # Each total is the number of records with the noise of as many counts as it has bins: weighted by that.
    weights = [1 / len(column.counts) for column in columns]
    records = sum(weight * column.total for weight, column in zip(weights, columns, strict=True)) / sum(weights)
    return Statistics(
        plan=plan,
        clients=clients,
        noise=noise,
        records=records,
        records_noise=noise / math.sqrt(sum(weights)),
        columns=columns,
    )


def class_weights(column: ColumnSummary, noise: float) -> tuple[float, ...]:
    """Weights that make all classes count alike: records over classes times a class' count; 1 in the mean over records.

    A class of which noise leaves hardly anything counts as two deviations of the noise, so that chance alone makes no
    weight immense.

    Raises:
        ValueError: the counts are drowned by noise, or the column is not that of the classes.
    """
    if column.kind != "classes":
        raise ValueError(f"{column.column!r} is not the column of the classes")
    if not _seen(column.total, len(column.counts), noise):
        raise ValueError("noise drowns the counts of the classes")
    counts = [max(float(one), 2 * noise, 1.0) for one in column.counts]
    return tuple(float(f"{sum(counts) / (len(counts) * one):.6g}") for one in counts)


def _column(one: Histogram, counts: Sums, noise: float) -> ColumnSummary:
    return ColumnSummary(
        column=one.column,
        kind=one.kind,
        names=one.names,
        edges=one.edges,
        counts=tuple(map(int, counts)),
        total=int(counts.sum()),
        missing=None if one.kind == "classes" else int(counts[-1]),
        number=_number(np.asarray(one.edges), counts[:-1].astype(np.float64), noise) if one.kind == "number" else None,
    )


def _seen(total: float, bins: int, noise: float) -> bool:
    """Whether a total of so many counts can be told from nothing."""
    return total > max(_SEEN * noise * math.sqrt(bins), 0.0)


def _number(edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], noise: float) -> NumberSummary | None:
    total = float(counts.sum())
    if not _seen(total, len(counts), noise):
        return None
    middles, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
    # Of bins that are alike nothing: for others, how many lie in which is known up to noise.
    spread = _TWO_SIDED * noise * float(np.sqrt(((half - counts @ half / total) ** 2).sum())) / total
    mean = float(counts @ middles) / total
    square = (middles - mean) ** 2
    variance = max(float(counts @ square) / total, 0.0)
    variance_noise = noise * float(np.sqrt(((square - variance) ** 2).sum())) / total
    deviation = math.sqrt(variance)
    return NumberSummary(
        mean=min(max(mean, float(edges[0])), float(edges[-1])),
        mean_noise=noise * float(np.sqrt(square.sum())) / total,
        mean_bin=min(max(float(counts @ half) / total, float(half.min())) + spread, float(half.max())),
        deviation=deviation,
        # Of a variance near 0 the root's slope says nothing: then the root of the noise does.
        deviation_noise=min(variance_noise / (2 * deviation), math.sqrt(variance_noise))
        if deviation > 0
        else math.sqrt(variance_noise),
        quantiles=tuple(_quantile(part, edges, counts, noise) for part in QUANTILES),
    )


def _quantile(part: float, edges: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], noise: float) -> Quantile:
    """By the cumulated counts, made to rise: the mean of the largest before and the smallest after each."""
    total = counts.sum()
    below = np.concatenate([[0.0], np.cumsum(counts)]) / total
    rising = np.clip((np.maximum.accumulate(below) + np.minimum.accumulate(below[::-1])[::-1]) / 2, 0.0, 1.0)
    # below_j - part: its own j counts have the weight 1 - part, the rest -part.
    j, rest = np.arange(len(below)), len(counts) - np.arange(len(below))
    bar = _TWO_SIDED * noise * np.sqrt(j * (1 - part) ** 2 + rest * part**2) / total
    place = int(np.clip(np.searchsorted(rising, part, side="right") - 1, 0, len(counts) - 1))
    height = rising[place + 1] - rising[place]
    inside = 0.5 if height <= 0 else (part - rising[place]) / height
    value = edges[place] + float(np.clip(inside, 0, 1)) * (edges[place + 1] - edges[place])
    # The true cumulated part is within the bar at each edge: below the first edge where it may reach `part`, and
    # above the last where it may fall short of it, the quantile can't lie.
    reaches = np.flatnonzero(below + bar >= part)
    short = np.flatnonzero(below - bar <= part)
    first = edges[max(int(reaches[0]) - 1, 0)] if len(reaches) else edges[-1]
    last = edges[min(int(short[-1]) + 1, len(edges) - 1)] if len(short) else edges[0]
    return Quantile(
        part=part, value=float(value), low=min(float(first), float(value)), high=max(float(last), float(value))
    )
