"""Veil by itself: a plan for the work, played as `veil simulate` plays it, on the inline or the Ray grid."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from server.observer import RoundRecord, Silent
from server.run_folder import read_parameters
from shared_models.parameters import Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from simulations.benchmarks.engines.memory import own_peak
from simulations.benchmarks.engines.playing import Played, Task
from simulations.benchmarks.engines.works import CLASSES, CLIPPING_NORM, DELTA, NOISE_MULTIPLIER
from simulations.run import Engine, Settings, failure, start_run

if TYPE_CHECKING:
    from simulations.ray_workers import RayWorkers

_ENGINES: Final[Mapping[str, Engine]] = {"inline": "inline", "ray": "ray"}


class Ends(Silent):
    """Notes when each round is over and on disk, and how many updates it has."""

    def __init__(self) -> None:
        self.moments: list[float] = []
        self.updates: list[int] = []

    def round_done(self, record: RoundRecord) -> None:
        """Note it."""
        self.moments.append(time.monotonic())
        self.updates.append(record.updates or 0)


_COMPANY = 10  # counts in work B alone: the others' networks are convolutions


def plan_of(task: Task) -> Plan:
    """The work as a plan; whatever it doesn't say is as by default: checkpoints, ledger, report."""
    work = task.work
    training: dict[str, Any] = {"learning_rate": work.learning_rate, "device": "cpu"}
    privacy: dict[str, Any] = {"trust": "none"}
    if work.private:
        training |= {
            "steps": work.steps,
            "sample_rate": work.sample_rate,
            "expected_batch_size": work.expected_batch,
            "dp_engine": task.dp_engine,
        }
        privacy = {
            "trust": "local",
            "noise_multiplier": NOISE_MULTIPLIER,
            "clipping_norm": CLIPPING_NORM,
            "delta": DELTA,
        }
    else:
        training |= {"epochs": 1, "expected_batch_size": work.batch, "company": _COMPANY}
    return Plan.model_validate(
        {
            "name": work.name,
            "seed": task.seed,
            "data": {
                "name": "npz",
                "path": str(Path(task.data).absolute()),
                "partition": {"kind": "iid", "clients": work.users},
                "test_fraction": 0.0,
                "card": {"classes": [str(number) for number in range(CLASSES)], "input_shape": list(work.shape)},
            },
            "model": {"name": work.model, "options": dict(work.options)},
            "training": training,
            "privacy": privacy,
            "federation": {"rounds": task.rounds, "cohort": {"sampling": "fixed", "size": work.cohort}},
            "evaluation": {"where": "none"},
        }
    )


def play(task: Task, actors: RayWorkers | None = None) -> Played:
    """Play all rounds in a folder that is thrown away; the inline grid has one process, however many are asked for.

    Args:
        task: what is played.
        actors: of Ray, that were started before.

    Raises:
        UsageError, RunError: as `start_run`; or the run failed.
    """
    imported, ends, plan = time.monotonic(), Ends(), plan_of(task)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(engine=_ENGINES[task.contender], workers=task.processes, actors=actors, observer=ends)
        run, outcome = start_run(plan, Path(folder) / "run", settings)
        if outcome.stopped == "failed":
            raise failure(run, outcome)
        ended, last = time.monotonic(), read_parameters(run.model)
    first = get_parameters(build_for(plan))
    return Played(
        imported=imported,
        rounds=ends.moments,
        updates=ends.updates,
        change=_distance(first, last),
        parameters=sum(value.size for value in first.values()),
        versions=_versions(task.contender),
        ended=ended,
        alone=own_peak(),
    )


def _distance(one: Parameters, other: Parameters) -> float:
    return math.sqrt(sum(float(np.square(other[name] - value, dtype=np.float64).sum()) for name, value in one.items()))


def _versions(contender: str) -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    if contender == "ray":
        import ray

        found["ray"] = str(ray.__version__)
    return found
