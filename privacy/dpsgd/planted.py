"""Gradients that an auditor plants among those of records, to look for them in what is released.

Each has one value on one coordinate (a Dirac canary: Nasr et al. 2023, arXiv 2302.07956, section 4), longer than the
clipping norm, so that it is clipped as the longest gradient of a record would be. From there on it goes the way of all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

    def parts(self, most: int) -> Iterator[PlantedGradients]:
        """All of them, so many at once: as rows they are nearly all zeros."""
        for first in range(0, len(self), most):
            yield PlantedGradients(self.places[first : first + most], self.values[first : first + most])

    def total(self, size: int) -> npt.NDArray[np.float32]:
        """Their sum, unclipped: (size,)."""
        found = np.zeros(size, np.float32)
        np.add.at(found, self.places.numpy(), self.values.numpy())
        return found

    def rows(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The gradients themselves: for each parameter (n, *its shape).

        Raises:
            IndexError: there is no such coordinate.
        """
        sizes = [parameter.numel() for parameter in parameters]
        whole = torch.zeros(len(self), sum(sizes))
        whole[torch.arange(len(self)), self.places] = self.values
        return [
            rows.reshape(len(self), *parameter.shape).to(parameter.device, parameter.dtype)
            for rows, parameter in zip(torch.split(whole, sizes, dim=1), parameters, strict=True)
        ]
