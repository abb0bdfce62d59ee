"""Gradients that an auditor plants among those of records, to look for them in what is released.

Each has one value on one coordinate (a Dirac canary: Nasr et al. 2023, arXiv 2302.07956, section 4), longer than the
clipping norm, so that it is clipped as the longest gradient of a record would be. From there on it goes the way of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PlantedGradients:
    """Of a simulation's clients alone.

    Attributes:
        places: int64 (n,), each one's coordinate, in the flat order of what is trained.
        values: float32 (n,), what stands there.

    Raises:
        ValueError: lengths or types differ.
    """

    places: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        if self.places.dtype != torch.int64 or self.values.dtype != torch.float32 or self.places.ndim != 1:
            raise ValueError("planted gradients have int64 places and float32 values")
        if self.places.shape != self.values.shape:
            raise ValueError(f"{len(self.places)} places for {len(self.values)} values")

    def __len__(self) -> int:
        return len(self.places)

    def take(self, rows: Tensor) -> PlantedGradients:
        """Some of them."""
        return PlantedGradients(self.places[rows], self.values[rows])

    def total(self, size: int) -> npt.NDArray[np.float32]:
        """Their sum, unclipped: (size,)."""
        found = np.zeros(size, np.float32)
        np.add.at(found, self.places.numpy(), self.values.numpy())
        return found

    def columns(self, parameters: Sequence[Tensor]) -> list[Columns]:
        """The gradients themselves, for each parameter, without the columns in which all are zero: nothing that is
        computed of their lengths, or added up, is another for it.

        Raises:
            IndexError: there is no such coordinate.
        """
        ends = np.cumsum([parameter.numel() for parameter in parameters])
        ordered, order = torch.sort(self.places, stable=True)
        if len(self) and not (int(ordered[0]) >= 0 and int(ordered[-1]) < ends[-1]):
            raise IndexError(f"planted gradients have coordinates beyond the {ends[-1]} trained values")
        found, first = [], 0
        for parameter, end in zip(parameters, ends, strict=True):
            last = int(torch.searchsorted(ordered, int(end)))
            mine, start = order[first:last], int(end) - parameter.numel()
            places, column = torch.unique_consecutive(ordered[first:last] - start, return_inverse=True)
            rows = torch.zeros(len(self), len(places))
            rows[mine, column] = self.values[mine]
            found.append(Columns(places.to(parameter.device), rows.to(parameter.device, parameter.dtype)))
            first = last
        return found


@dataclass(frozen=True, eq=False)
class Columns:
    """Of one parameter, some coordinates' values.

    Attributes:
        places: int64 (k,), which of the parameter's values.
        rows: (examples, k).
    """

    places: Tensor
    rows: Tensor

    def spread(self, sums: Tensor, size: int) -> Tensor:
        """Values of those coordinates (k,) as a whole parameter's (size,); the others are 0."""
        whole = torch.zeros(size, dtype=sums.dtype, device=sums.device)
        whole[self.places] = sums
        return whole
