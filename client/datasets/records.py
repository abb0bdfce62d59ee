"""Records: examples and labels as tensors, with the columns that say whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from privacy.dpsgd.planted import PlantedGradients
from security.errors import UsageError

StrArray = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False, kw_only=True)
class Records:
    """Examples of one owner, one pool or one part of it; none at all (n = 0) is legal.

    Attributes:
        x: float32, (n, *input_shape), finite; in memory one record after the other.
        y: int64, (n,), the number of each example's class, from 0; or (n, places), where each place has one.
        groups: columns a natural partition may use; text, each (n,).
        people: who each record belongs to, text (n,), where the plan names a person column.
        rows: position of each record in the pool that it was taken from, where somebody numbered that.
        planted: what an auditor plants beside them, in a simulation (`client.planting`).

    Raises:
        UsageError: lengths differ, or a value or label is out of range. The text counts records, it shows
        none.
    """

    x: Tensor
    y: Tensor
    groups: Mapping[str, StrArray] = field(default_factory=dict)
    people: StrArray | None = None
    rows: npt.NDArray[np.int64] | None = None
    planted: PlantedGradients | None = None

    def __post_init__(self) -> None:
        if self.x.dtype != torch.float32 or self.y.dtype != torch.int64 or self.y.ndim not in (1, 2) or self.x.ndim < 2:
            raise UsageError("records: x must be float32 with a row for each record, and y int64 for each")
        columns: dict[str, Tensor | npt.NDArray[Any]] = {
            "y": self.y,
            **{f"column {name!r}": column for name, column in self.groups.items()},
        }
        if self.people is not None:
            columns["people"] = self.people
        for name, column in columns.items():
            if column.ndim > (2 if name == "y" else 1) or len(column) != len(self.x):
                raise UsageError(f"records: {name} has {len(column)} values for {len(self.x)} records")
            if isinstance(column, np.ndarray) and column.dtype.kind != "U":
                raise UsageError(f"records: {name} must be text")
        unfinite = int((~np.isfinite(self.x.flatten(1).numpy())).any(axis=1).sum())
        if unfinite:
            raise UsageError(f"records: {unfinite} of {len(self.x)} records hold NaN or infinity; mend or remove them")
        negative = count_rows(self.y < 0)
        if negative:
            raise UsageError(f"records: {negative} of {len(self.y)} labels are negative; classes are numbered from 0")
        object.__setattr__(self, "groups", MappingProxyType(dict(self.groups)))
        object.__setattr__(self, "x", _in_rows(self.x))

    @classmethod
    def trusted(
        cls,
        *,
        x: Tensor,
        y: Tensor,
        groups: Mapping[str, StrArray] | None = None,
        people: StrArray | None = None,
        rows: npt.NDArray[np.int64] | None = None,
        planted: PlantedGradients | None = None,
    ) -> Records:
        """Records that were looked through before: they are not again."""
        found = object.__new__(cls)
        x = _in_rows(x)
        values = {
            "x": x,
            "y": y,
            "groups": MappingProxyType(dict(groups or {})),
            "people": people,
            "rows": rows,
            "planted": planted,
        }
        for name, value in values.items():
            object.__setattr__(found, name, value)
        return found

    def __len__(self) -> int:
        return len(self.y)

    def part(self, rows: slice) -> Records:
        """Neighbouring records, as a view."""
        return Records.trusted(
            x=self.x[rows],
            y=self.y[rows],
            groups={name: column[rows] for name, column in self.groups.items()},
            people=None if self.people is None else self.people[rows],
            rows=None if self.rows is None else self.rows[rows],
        )

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Records:
        """The records at these positions, in this order (a copy)."""
        rows = np.asarray(indices, dtype=np.int64)
        picked = torch.from_numpy(rows)
        return Records.trusted(
            x=self.x[picked],
            y=self.y[picked],
            groups={name: column[rows] for name, column in self.groups.items()},
            people=None if self.people is None else self.people[rows],
            rows=None if self.rows is None else self.rows[rows],
        )


def count_rows(found: Tensor) -> int:
    """In how many rows of truth values (n,) or (n, places) one is true."""
    return int((found.any(1) if found.ndim > 1 else found).sum())


def _in_rows(x: Tensor) -> Tensor:
    """The same values with the strides of a new tensor.

    A dimension of length 1 may have any stride. From some, torch takes grey images for ones that are stored channels
    last, computes otherwise and rounds otherwise: the same records gave another model in another process.
    """
    return x.contiguous().view(-1).view(x.shape)


Parts = tuple[Records, Records | None]
"""What a loader returns: training records, and the set's own test part if it has one."""
