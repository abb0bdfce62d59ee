"""Counts of records, such as how many a model got right: they are releases too (rule 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.mechanisms.release import Mechanism, count, positive

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class NoisyCounts(Mechanism, name="noisy-counts"):
    """Whole-number counts, released together, each with Gaussian noise rounded to a whole number.

    One record changes each count by at most 1, so all of them together by at most sqrt(counts) in L2: correct and
    total by sqrt 2. A unit of k records changes them by k times that.

    Rounding is free, and the price exact: a count x is a whole number, so round(x + G) = x + round(G) for any
    real G. What is released is therefore a function of the Gaussian mechanism's output x + G, and post-processing
    costs nothing. (The identity also lets a client draw round(G) and add integers.)

    Attributes:
        noise: standard deviation of the Gaussian before rounding, in counts, > 0; every count draws its own.
        counts: how many counts are released together, >= 1.
        records_per_unit: most records of one unit (a person), >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise: float
    counts: int = 2
    records_per_unit: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise=positive("noise", self.noise),
            counts=count("counts", self.counts),
            records_per_unit=count("records_per_unit", self.records_per_unit),
        )

    @property
    def sensitivity(self) -> float:
        """The L2 distance by which one unit can move all counts together."""
        return self.records_per_unit * math.sqrt(self.counts)

    def event(self) -> dp_event.DpEvent:
        """The Gaussian mechanism with this sensitivity."""
        from dp_accounting import dp_event

        return dp_event.GaussianDpEvent(self.noise / self.sensitivity)

    def describe(self) -> str:
        """One line for a person."""
        counts = "1 count" if self.counts == 1 else f"{self.counts} counts"
        unit = "" if self.records_per_unit == 1 else f", at most {self.records_per_unit} records a unit"
        return f"noisy counts: {counts}, noise {self.noise:g}{unit}"


@dataclass(frozen=True, kw_only=True)
class NoisyTable(Mechanism, name="noisy-table"):
    """Whole-number counts of cells of which each record is in one at most, each with Gaussian noise rounded to a whole
    number.

    One record changes one cell by 1 and no other, so all of them together by at most 1 in L2, however many there are;
    and so many cells need no more noise each than one. A unit of k records changes them by the sum of k such vectors,
    of length k at most (all in one cell). Rounding is free as in `NoisyCounts`.

    Attributes:
        noise: standard deviation of the Gaussian before rounding, in counts, > 0; every cell draws its own.
        records_per_unit: most records of one unit (a person), >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise: float
    records_per_unit: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise=positive("noise", self.noise), records_per_unit=count("records_per_unit", self.records_per_unit)
        )

    @property
    def sensitivity(self) -> float:
        """The L2 distance by which one unit can move all cells together."""
        return float(self.records_per_unit)

    def event(self) -> dp_event.DpEvent:
        """The Gaussian mechanism with this sensitivity."""
        from dp_accounting import dp_event

        return dp_event.GaussianDpEvent(self.noise / self.sensitivity)

    def describe(self) -> str:
        """One line for a person."""
        unit = "" if self.records_per_unit == 1 else f", at most {self.records_per_unit} records a unit"
        return f"noisy table: each record in one cell at most, noise {self.noise:g} a cell{unit}"
