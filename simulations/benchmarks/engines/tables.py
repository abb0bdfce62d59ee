"""What came of all runs: medians by contender, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from rich.table import Table

from simulations.benchmarks.engines.measure import Figures
from simulations.benchmarks.engines.works import Work

FLOOR: Final = "floor"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender in one work.

    Attributes:
        work: name of the work.
        contender: its label.
        round: median seconds of a warm round, over all repeats; None if there is none.
        ratio: that over the floor's.
        start_up: median seconds from the process' start until the first round was over.
        peak: largest peak memory, in MB.
        error: why a run has no figures.
    """

    work: str
    contender: str
    round: float | None = None
    ratio: float | None = None
    start_up: float | None = None
    peak: float | None = None
    error: str | None = None


def rows(found: Sequence[Figures]) -> list[Row]:
    """One row a work and contender, in the order they come in; a run that failed is told, and counts for nothing."""
    warm = {key: [seconds for one in some for seconds in one.later] for key, some in _by_case(found).items()}
    made = []
    for (work, contender), some in _by_case(found).items():
        later, floor = warm[work, contender], warm.get((work, FLOOR))
        first = [one.first for one in some if one.first is not None]
        peaks = [one.peak for one in some if one.peak is not None]
        made.append(
            Row(
                work=work,
                contender=contender,
                round=median(later) if later else None,
                ratio=median(later) / median(floor) if later and floor else None,
                start_up=median(first) if first else None,
                peak=max(peaks, default=None),
                error=next((one.error for one in some if one.error is not None), None),
            )
        )
    return made


def tables(found: Sequence[Figures], works: Iterable[Work]) -> Iterator[Table]:
    """A table a work."""
    all_rows = rows(found)
    for work in works:
        own = [row for row in all_rows if row.work == work.name]
        if not own:
            continue
        table = Table(title=f"{work.name}: {work.summary()}", title_justify="left")
        table.add_column("contender")
        for name in ("warm round, s", "over floor", "first round after, s", "peak, MB"):
            table.add_column(name, justify="right")
        for row in own:
            table.add_row(
                row.contender,
                _shown(row.round, ".3f"),
                _shown(row.ratio, ".2f"),
                _shown(row.start_up, ".1f"),
                _shown(row.peak, ",.0f"),
            )
        yield table


def _by_case(found: Sequence[Figures]) -> dict[tuple[str, str], list[Figures]]:
    cases: dict[tuple[str, str], list[Figures]] = {}
    for one in found:
        cases.setdefault((one.work, one.contender), []).append(one)
    return cases


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
