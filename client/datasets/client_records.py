"""The records of many clients as rows of one pool, each client's in one piece: nothing is held twice.

So they can lie in memory that several processes share.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.records import Records


@dataclass(frozen=True, kw_only=True)
class SharedRecords:
    """`ClientRecords` as plain arrays, for another process.

    Attributes:
        x: float32, (n, *input_shape).
        y: int64, (n,).
        sizes: how many records each client has, by its id, in the order of the rows.
    """

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.int64]
    sizes: Mapping[str, int]


class ClientRecords(Mapping[str, Records]):
    """Records by client id.

    Args:
        pool: of all clients, one client after the other.
        sizes: how many records each has, in the order of the pool.

    Raises:
        ValueError: the sizes don't add up to the pool.
    """

    def __init__(self, pool: Records, sizes: Mapping[str, int]) -> None:
        if sum(sizes.values()) != len(pool):
            raise ValueError(f"{sum(sizes.values())} records of clients in a pool of {len(pool)}")
        self._pool = pool
        self._sizes = dict(sizes)
        ends = np.cumsum(list(sizes.values()), dtype=np.int64)
        self._ends = dict(zip(sizes, ends.tolist(), strict=True))
        self._made: dict[str, Records] = {}

    @classmethod
    def joined(cls, records: Mapping[str, Records]) -> ClientRecords:
        """Of single clients' records, which are copied; columns that say whose they are stay behind.

        Raises:
            ValueError: there is no client.
        """
        if not records:
            raise ValueError("records of no client")
        x, y = (torch.cat([getattr(own, name) for own in records.values()]) for name in ("x", "y"))
        pool = Records.trusted(x=x, y=y)
        return cls(pool, {client: len(own) for client, own in records.items()})

    @classmethod
    def from_shared(cls, shared: SharedRecords) -> ClientRecords:
        """Of another process' arrays, without a copy: nobody writes to records."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            pool = Records.trusted(x=torch.from_numpy(shared.x), y=torch.from_numpy(shared.y))
        return cls(pool, shared.sizes)

    def shared(self) -> SharedRecords:
        """The arrays of examples and labels, without a copy."""
        return SharedRecords(x=self._pool.x.numpy(), y=self._pool.y.numpy(), sizes=self._sizes)

    def __getitem__(self, client: str) -> Records:
        if client not in self._made:
            end = self._ends[client]
            self._made[client] = self._pool.part(slice(end - self._sizes[client], end))
        return self._made[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)
