"""What the command does, one import away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from server.observer import Observer, Silent
from shared_models import plan as _plan
from simulations.repeat import Repeated, repeat_run
from simulations.results import Run
from simulations.run import Engine, Settings, failure, resume_run, start_run
from simulations.scenarios import find_plan


class Plan(_plan.Plan):
    """A plan; see `docs/plan.md` for its keys."""

    @classmethod
    def load(cls, name: str | Path, overrides: Iterable[str] = ()) -> Self:
        """A scenario by name, or a plan by its TOML file.

        Args:
            name: `digits`, or a path.
            overrides: `KEY=VALUE` texts, as after `--set`.

        Raises:
            UsageError: no such plan, or it is wrong.
        """
        return cls.model_validate(find_plan(str(name), overrides).model_dump())


def simulate(
    plan: _plan.Plan,
    *,
    out: str | Path | None = None,
    engine: Engine = "ray",
    workers: int = 0,
    gpus_per_worker: float = 0.0,
    ray_address: str | None = None,
    models: Mapping[str, str] | None = None,
    observer: Observer | None = None,
    track: Iterable[str] = (),
) -> Run:
    """Simulate a federation on this machine or a Ray cluster, and return the finished run.

    Args:
        plan: what to run.
        out: the run's folder; default `runs/NAME-TIMESTAMP`.
        engine: `ray`, or `inline` for everything in this process.
        workers: Ray actors; 0 for one a processor.
        gpus_per_worker: GPU share of an actor.
        ray_address: address of a running cluster.
        models: networks of your own, by the name that the plan gives: `package.module:function` or
            `path/to/file.py:function`.
        observer: is told of each round.
        track: trackers that are told too, as `tensorboard=DIR` (docs/tracking.md).

    Raises:
        UsageError: the plan, its data or the folder won't do.
        RunError: the run failed; its folder holds a checkpoint and a summary that says why.
    """
    settings = Settings(
        engine=engine,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        ray_address=ray_address,
        models=models or {},
        observer=observer or Silent(),
        track=tuple(track),
    )
    folder, outcome = start_run(plan, None if out is None else Path(out), settings)
    if outcome.stopped == "failed":
        raise failure(folder, outcome)
    return Run(folder.path)


def repeat(
    plan: _plan.Plan,
    times: int,
    *,
    out: str | Path | None = None,
    engine: Engine = "ray",
    workers: int = 0,
    gpus_per_worker: float = 0.0,
    ray_address: str | None = None,
    models: Mapping[str, str] | None = None,
    observer: Observer | None = None,
) -> Repeated:
    """Simulate a plan with several seeds: mean and deviation instead of one lucky figure.

    All runs use the same data, so under privacy they cost more together than each of them says.

    Args:
        plan: what to run.
        times: number of runs, 2 or more; their seeds are `plan.seed`, `plan.seed + 1`, ...
        out: the folder that holds the runs' folders; default `runs/NAME-TIMESTAMP`.
        engine, workers, gpus_per_worker, ray_address, models, observer: as in `simulate`.

    Raises:
        UsageError: the plan, its data or the folder won't do, or `times` is less than 2.
        RunError: a run failed; the runs before it are kept.
    """
    settings = Settings(
        engine=engine,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        ray_address=ray_address,
        models=models or {},
        observer=observer or Silent(),
    )
    return repeat_run(plan, times, None if out is None else Path(out), settings)


def resume(
    path: str | Path,
    *,
    engine: Engine = "ray",
    models: Mapping[str, str] | None = None,
    observer: Observer | None = None,
) -> Run:
    """Go on with an interrupted run from its last checkpoint; a finished one is returned as it is.

    Args:
        path: the run's folder.
        engine, models, observer: as in `simulate`.

    Raises:
        UsageError: there is no run, or its files are damaged.
        RunError: the run failed.
    """
    folder, outcome = resume_run(
        Path(path), Settings(engine=engine, models=models or {}, observer=observer or Silent())
    )
    if outcome is not None and outcome.stopped == "failed":
        raise failure(folder, outcome)
    return Run(folder.path)
