"""What a plan's network sees of records: their features, where the plan has a [features] table.

In a simulation the features of the whole pool are computed once, before it is spread over the clients, and lie in the
user's cache folder; every process maps that file into memory and gives each client its rows. A deployed site computes
those of its own records and keeps them in memory alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from torch import Tensor, from_numpy

from client.datasets.partition import client_parts, client_records, data_stamp, held_out_key, partition
from client.datasets.records import Records
from client.datasets.registry import load
from client.datasets.split import split
from shared_models.features.apply import model_inputs
from shared_models.plan import Plan

_Rows = npt.NDArray[np.int64]


def as_seen(plan: Plan, records: Records, *, cached: bool) -> Records:
    """Records with what the plan's network sees of each.

    Args:
        plan: the resolved plan.
        records: as loaded.
        cached: as for `model_inputs`; never at a deployed site.

    Raises:
        UsageError: as `model_inputs`.
    """
    if plan.features is None:
        return records
    return dataclasses.replace(records, x=model_inputs(plan, records.x, cached=cached))


def seen_records(plan: Plan, *, split_key: bytes) -> Mapping[str, Records]:
    """As `client_records`, with what the plan's network sees of each record."""
    if plan.features is None:
        return client_records(plan.data, seed=plan.seed, split_key=split_key)
    return _Training(_of(plan, split_key))


def seen_parts(plan: Plan, *, split_key: bytes) -> Mapping[str, tuple[Records, Records]]:
    """As `client_parts`, with what the plan's network sees of each record."""
    if plan.features is None:
        return client_parts(plan.data, seed=plan.seed, split_key=split_key, whole=plan.spreads_all)
    return _of(plan, split_key)


class _Clients(Mapping[str, tuple[Records, Records]]):
    """Every client's two parts as rows of one pool's features; what a client was asked for once stays in memory."""

    def __init__(self, pool: Tensor, parts: Mapping[str, tuple[Records, Records]]) -> None:
        self._pool = pool
        self._rows = {name: tuple(map(_rows_and_labels, own)) for name, own in parts.items()}
        self._made: dict[str, tuple[Records, Records]] = {}

    def __getitem__(self, client: str) -> tuple[Records, Records]:
        if client not in self._made:
            train, held_out = (Records(x=self._pool[from_numpy(rows)], y=y) for rows, y in self._rows[client])
            self._made[client] = train, held_out
        return self._made[client]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class _Training(Mapping[str, Records]):
    """The first parts."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients

    def __getitem__(self, client: str) -> Records:
        return self._clients[client][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)


def _rows_and_labels(records: Records) -> tuple[_Rows, Tensor]:
    assert records.rows is not None
    return records.rows, records.y


def _of(plan: Plan, split_key: bytes) -> _Clients:
    return _clients(plan.model_dump_json(), split_key, data_stamp(plan.data))


@lru_cache(maxsize=1)
def _clients(plan_text: str, split_key: bytes, _stamp: object) -> _Clients:
    plan = Plan.model_validate_json(plan_text)
    pool = load(plan.data, split_key=split_key, whole=plan.spreads_all).train
    key = held_out_key(split_key, whole=plan.spreads_all)
    numbered = dataclasses.replace(pool, rows=np.arange(len(pool)))
    parts = {
        name: split(own, key=key, test_fraction=plan.data.test_fraction) if plan.holds_out else (own, own.take([]))
        for name, own in partition(
            numbered, plan.data.partition, seed=plan.seed, leave_out=plan.data.leave_out or ()
        ).items()
    }
    return _Clients(model_inputs(plan, pool.x, cached=True), parts)
