"""A run's ledger as tests look at it: what was reserved and committed, and what that costs, by dp_accounting alone."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant

from privacy.ledger import Ledger

Job = tuple[str, str, int]  # client, phase, round


def bodies(path: Path, kind: str) -> list[dict[str, Any]]:
    """The bodies of all entries of a kind, in all scopes."""
    with Ledger.open(path, read_only=True) as ledger:
        return [entry.body for scope in ledger.scopes() for entry in ledger.entries(scope) if entry.kind == kind]


def reserved(path: Path) -> Counter[Job]:
    """How often each client was charged for each phase of each round."""
    tasks = [body["task"] for body in bodies(path, "reserve")]
    return Counter((task["client"], task["phase"], task["round"]) for task in tasks)


def committed(path: Path) -> Counter[Job]:
    """How often each client committed a reply."""
    with Ledger.open(path, read_only=True) as ledger:
        found: Counter[Job] = Counter()
        for scope in ledger.scopes():
            tasks: dict[str, Job] = {}
            ids = []
            for entry in ledger.entries(scope):
                if entry.kind == "reserve":
                    task = entry.body["task"]
                    tasks[task_id(task)] = (task["client"], task["phase"], task["round"])
                elif entry.kind == "commit":
                    ids.append(entry.body["task"])
            found.update(tasks[name] for name in ids)
    return found


def task_id(task: Mapping[str, Any]) -> str:
    """As the ledger names tasks."""
    from privacy.ledger import Task

    return Task(**task).id


def charges(path: Path, client: str, *, up_to: int | None = None) -> list[tuple[dict[str, Any], int]]:
    """Every release that a client's chain charges, as JSON with its count, of rounds up to one."""
    found = []
    for body in bodies(path, "reserve"):
        if body["task"]["client"] == client and (up_to is None or body["task"]["round"] <= up_to):
            assert body["charge"] is not None
            found += [(release, count) for release, count in body["charge"]["releases"]]
    return found


def epsilon(releases: Iterable[tuple[Mapping[str, Any], int]], delta: float) -> float:
    """What they cost, by dp_accounting itself: nothing of Veil's accountant is used."""
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    steps: Counter[tuple[float, float]] = Counter()
    counts: Counter[float] = Counter()
    for release, times in releases:
        assert release["records_per_unit"] == 1
        if release["mechanism"] == "dp-sgd":
            steps[release["noise_multiplier"], release["sample_rate"]] += release["steps"] * times
        else:
            counts[release["noise"] / release["counts"] ** 0.5] += times
    for (noise, rate), times in steps.items():
        event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
        accountant.compose(dp_event.SelfComposedDpEvent(event, times))
    for noise, times in counts.items():
        accountant.compose(dp_event.SelfComposedDpEvent(dp_event.GaussianDpEvent(noise), times))
    return float(accountant.get_epsilon(delta)) if steps or counts else 0.0


def copy_of(path: Path, to: Path) -> None:
    """A whole copy of a ledger that is in use, as a backup makes it."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)


def settle(path: Path) -> None:
    """Move SQLite's log into the file, as happens by itself when the last user closes it."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
