"""Canaries: what an auditor plants among the clients of a simulation, each in or out by a coin of its own.

A deployed site knows nothing of this: its records are its own alone (`client.site`). What is planted where follows from
one secret of the auditor's, so that the clients, wherever they run, and whoever looks for the canaries agree on it.

| kind | a canary is | out: |
|---|---|---|
| `gradients` | a gradient on one coordinate, beside those of a client's records | it isn't there |
| `mislabelled` | a record of a client's, with a wrong label | the record isn't there |
| `records` | a record of a client's, as it is | the record isn't there |
| `clients` | a client whose update is one coordinate's | it has no records, and sends zeros |
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch

from client.datasets.records import Records
from privacy.dpsgd.planted import PlantedGradients

PLANTED: Final = "planted"
"""Key of a simulated client's configuration: a list of `Planting`s as JSON."""

Kind = Literal["gradients", "mislabelled", "records", "clients"]

_LENGTH: Final = 10.0  # of a planted gradient or update, in clipping norms: clipping has something to do


@dataclass(frozen=True, kw_only=True)
class Planting:
    """What is planted.

    Attributes:
        kind: of canary.
        count: how many canaries.
        secret: 32 bytes as hexadecimal; coins and places follow from it.
        clients: who they are dealt to, in turn; under `clients` the canaries themselves.
        coordinates: of the trained values, where kinds that take one each are planted; none twice, as many as canaries.
        clipping_norm: that planted values exceed.
        classes: number of them, for wrong labels.
        draw: number of the throw: another one has the same canaries and other coins.
    """

    kind: Kind
    count: int
    secret: str
    clients: tuple[str, ...]
    clipping_norm: float
    classes: int
    coordinates: tuple[int, ...] = ()
    draw: int = 0

    def __post_init__(self) -> None:
        if not self.clients or self.count < 1:
            raise ValueError("there must be canaries and clients")
        if self.kind in ("gradients", "clients") and len(set(self.coordinates)) != self.count:
            raise ValueError(f"{self.count} canaries of one coordinate each, and {len(set(self.coordinates))} to take")
        if self.kind == "clients" and self.count != len(self.clients):
            raise ValueError(f"{self.count} canaries, but {len(self.clients)} clients")

    def coins(self) -> npt.NDArray[np.bool_]:
        """Which canaries are planted."""
        return self._chance("coins", self.draw).random(self.count) < 0.5

    def owners(self) -> npt.NDArray[np.int64]:
        """Of each canary, the number of its client."""
        return np.arange(self.count, dtype=np.int64) % len(self.clients)

    def places(self) -> npt.NDArray[np.int64]:
        """Of each canary, its coordinate; no two have the same."""
        return self._chance("places").permutation(np.array(self.coordinates, dtype=np.int64))

    def signs(self) -> npt.NDArray[np.float32]:
        """Of each canary, +1 or -1: which way its coordinate is moved."""
        return np.where(self._chance("signs").random(self.count) < 0.5, -1, 1).astype(np.float32)

    def rows(self, client: int, records: int) -> npt.NDArray[np.int64]:
        """Which of a client's records are canaries, in the order of its canaries; as many as it has at most."""
        wanted = int(np.sum(self.owners() == client))
        return self._chance("rows", client).permutation(records)[:wanted].astype(np.int64)

    def labels(self, client: int, true: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """A wrong label for each of a client's canaries; where each place has one, for each of its places."""
        return (true + self._chance("labels", client).integers(1, self.classes, true.shape)) % self.classes

    def _chance(self, what: str, client: int = 0) -> np.random.Generator:
        # The kind too: one secret serves plantings of several kinds in one run, whose coins must not be the same.
        return np.random.default_rng([*bytes.fromhex(self.secret), *f"{self.kind} {what}".encode(), client])


def to_json(plantings: Sequence[Planting]) -> str:
    """For a client's configuration."""
    return json.dumps([asdict(planting) for planting in plantings])


def with_canaries(records: Records, text: str, client: str) -> Records:
    """A client's records and what is planted among them.

    Args:
        records: its own.
        text: what `to_json` wrote.
        client: its id.
    """
    for planting in _read(text):
        if client in planting.clients:
            records = _with(records, planting, planting.clients.index(client))
    return records


def _with(records: Records, planting: Planting, number: int) -> Records:
    if planting.kind in ("gradients", "clients"):
        mine = np.flatnonzero((planting.owners() == number) & planting.coins())
        planted = PlantedGradients(
            torch.from_numpy(planting.places()[mine]),
            torch.from_numpy(planting.signs()[mine] * np.float32(_LENGTH * planting.clipping_norm)),
        )
        own = records.take([]) if planting.kind == "clients" else records
        return dataclasses.replace(own, planted=planted)
    rows, coins = planting.rows(number, len(records)), _coins_of(planting, number)
    y = records.y.clone()
    if planting.kind == "mislabelled":
        y[rows] = torch.from_numpy(planting.labels(number, records.y[rows].numpy()))
    kept = np.setdiff1d(np.arange(len(records)), rows[~coins[: len(rows)]])
    return dataclasses.replace(dataclasses.replace(records, y=y).take(kept), planted=records.planted)


def canary_records(records: Records, planting: Planting, client: str) -> tuple[Records, npt.NDArray[np.bool_]]:
    """A client's canaries that are records, with the labels they are planted with, and their coins.

    Args:
        records: the client's own.
        planting: of kind `mislabelled` or `records`.
        client: its id, one of the planting's.
    """
    number = planting.clients.index(client)
    rows = planting.rows(number, len(records))
    found = records.take(rows)
    if planting.kind == "mislabelled":
        found = dataclasses.replace(found, y=torch.from_numpy(planting.labels(number, found.y.numpy())))
    return found, _coins_of(planting, number)[: len(rows)]


def _coins_of(planting: Planting, client: int) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = planting.coins()[planting.owners() == client]
    return found


@lru_cache(maxsize=4)
def _read(text: str) -> tuple[Planting, ...]:
    return tuple(
        Planting(**{**raw, "clients": tuple(raw["clients"]), "coordinates": tuple(raw["coordinates"])})
        for raw in json.loads(text)
    )
