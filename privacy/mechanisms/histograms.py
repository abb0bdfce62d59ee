"""Histograms of several columns, released together: one record is counted once in each (rule 10)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from privacy.mechanisms.release import Mechanism, Release, count, positive

if TYPE_CHECKING:
    from dp_accounting import dp_event


@dataclass(frozen=True, kw_only=True)
class NoisyHistograms(Mechanism, name="noisy-histograms"):
    """The counts of all bins of some columns' histograms, each with Gaussian noise rounded to a whole number.

    A record lies in exactly one bin of each column, missing values and those out of bounds included. Adding or removing
    it moves one count of each of c columns by 1, so all of them together by sqrt(c) in L2, however many bins there
    are. A unit of k records moves them by k times that at most, and by as much if its records are alike.

    Rounding is free, as for `NoisyCounts`: a count x is a whole number, so x + round(G) = round(x + G), which is
    post-processing of the Gaussian mechanism.

    Attributes:
        noise_multiplier: standard deviation of the Gaussian before rounding over sqrt(c), what a record moves, > 0.
        columns: c, how many histograms, >= 1.
        records_per_unit: k, most records of one unit (a person), >= 1.
        releases: how many times all of it is released, >= 1.

    Raises:
        ValueError: if a value is out of range.
    """

    noise_multiplier: float
    columns: int
    records_per_unit: int = 1
    releases: int = 1

    def __post_init__(self) -> None:
        self._set(
            noise_multiplier=positive("noise_multiplier", self.noise_multiplier),
            columns=count("columns", self.columns),
            records_per_unit=count("records_per_unit", self.records_per_unit),
            releases=count("releases", self.releases),
        )

    @property
    def noise(self) -> float:
        """Standard deviation of the Gaussian before rounding, in counts."""
        return self.noise_multiplier * math.sqrt(self.columns)

    @property
    def sensitivity(self) -> float:
        """The L2 distance by which one unit can move all counts together."""
        return self.records_per_unit * math.sqrt(self.columns)

    @property
    def sample_rate(self) -> float:
        """All records are counted."""
        return 1.0

    def with_noise_multiplier(self, noise_multiplier: float) -> NoisyHistograms:
        """The same histograms with other noise."""
        return replace(self, noise_multiplier=noise_multiplier)

    def event(self) -> dp_event.DpEvent:
        """The Gaussian mechanism with this sensitivity."""
        from dp_accounting import dp_event

        once = dp_event.GaussianDpEvent(self.noise_multiplier / self.records_per_unit)
        return dp_event.SelfComposedDpEvent(once, self.releases)

    def parts(self) -> tuple[Release, int]:
        """All histograms once, and how often."""
        return replace(self, releases=1), self.releases

    def describe(self) -> str:
        """One line for a person."""
        histograms = "a histogram" if self.columns == 1 else f"histograms of {self.columns} columns"
        unit = "" if self.records_per_unit == 1 else f", at most {self.records_per_unit} records a unit"
        times = "" if self.releases == 1 else f", {self.releases} times"
        return f"noisy histograms: {histograms}, noise {self.noise:.4g} in each count{unit}{times}"
