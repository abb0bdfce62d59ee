"""What clients' counts by class and guess say together: accuracy, recall and precision, with intervals that cover their
noise and chance. All of it is computed from what was released, so it costs nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from server.evaluation import Metrics
from server.noisy_counts import Estimate, ratio_of_cells

Table = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class ClassCounts:
    """Tables of several clients, added up.

    Attributes:
        round: after which.
        counts: (classes, classes); row: true class, column: guess. With noise any may be negative.
        clients: how many gave one.
        noise: standard deviation of the noise in each cell of each client; 0 for exact ones.
    """

    round: int
    counts: tuple[tuple[int, ...], ...]
    clients: int
    noise: float

    @classmethod
    def of(cls, tables: Sequence[Table], *, round_number: int, noise: float) -> ClassCounts | None:
        """Add up tables; None without any."""
        if not tables:
            return None
        total = sum(tables[1:], tables[0].copy())
        rows = tuple(tuple(int(cell) for cell in row) for row in total)
        return cls(round=round_number, counts=rows, clients=len(tables), noise=noise)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClassCounts:
        """The inverse of `to_json`.

        Raises:
            KeyError, TypeError: it is something else.
        """
        rows = tuple(tuple(int(cell) for cell in row) for row in data["counts"])
        return cls(round=int(data["round"]), counts=rows, clients=int(data["clients"]), noise=float(data["noise"]))

    def to_json(self) -> dict[str, Any]:
        """As in `summary.json`."""
        rows = [list(row) for row in self.counts]
        return {"round": self.round, "clients": self.clients, "noise": self.noise, "counts": rows}

    @property
    def table(self) -> Table:
        """The counts as an array."""
        return np.array(self.counts, dtype=np.int64)

    def accuracy(self) -> Estimate:
        """The part of all examples that was right."""
        classes = len(self.counts)
        return self._ratio(int(np.trace(self.table)), int(self.table.sum()), (classes, classes**2))

    def recall(self, label: int) -> Estimate:
        """The part of a class that was found."""
        return self._ratio(self.counts[label][label], sum(self.counts[label]), (1, len(self.counts)))

    def precision(self, label: int) -> Estimate:
        """The part of those taken for a class that is of it."""
        column = int(self.table[:, label].sum())
        return self._ratio(self.counts[label][label], column, (1, len(self.counts)))

    def is_drowned(self, total: int, cells: int) -> bool:
        """Whether a sum over cells is no more than its own noise may make: two standard deviations."""
        return total <= 2 * self.noise * math.sqrt(cells * self.clients) or total <= 0

    def balanced_accuracy(self) -> float | None:
        """Mean recall over the classes of which there are more examples than noise may make; None of none.

        Which classes those are is decided by the noisy counts, so it costs nothing.
        """
        classes = len(self.counts)
        there = [label for label in range(classes) if not self.is_drowned(sum(self.counts[label]), classes)]
        known = [value for label in there if (value := self.recall(label).value) is not None]
        return sum(known) / len(known) if known else None

    def metrics(self) -> Metrics:
        """For a line of metrics; empty where too little is known."""
        estimate, balanced = self.accuracy(), self.balanced_accuracy()
        if estimate.value is None:
            return {}
        found = {"accuracy": estimate.value, "accuracy_low": estimate.low, "accuracy_high": estimate.high}
        return found if balanced is None else {**found, "balanced_accuracy": balanced}

    def _ratio(self, part: int, whole: int, cells: tuple[int, int]) -> Estimate:
        return ratio_of_cells(part, whole, cells=cells, clients=self.clients, noise=self.noise)
