"""Ray Tune plays the trials: which runs when, on how many processors, and, on request, which fall behind (ASHA).

Tune is given the finished list of trials as a grid over their names, and tells what happens; what a trial is, and
whether it is over, is in its own folder. So a sweep that was killed needs nothing of Tune's to go on. Its console
output, loggers and signal handlers are off, its files lie in the sweep's folder.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from simulations.sweep.book import SweepFolder, Terms
from simulations.sweep.trials import Trial

_QUIET: Final = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep at once; it can be gone on with
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a round may have no metric
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "1000000",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # or relative paths would mean something else
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
}
_REDUCTION: Final = 3
_HOME: Final = str(Path(__file__).resolve().parents[2])  # the folder that holds our packages


class Told(Protocol):
    """Is told what becomes of trials."""

    def began(self, name: str) -> None:
        """It plays."""
        ...

    def round(self, name: str, number: int, value: float) -> None:
        """A round is over and was judged."""
        ...

    def ended(self, name: str, early: bool, problem: str | None) -> None:
        """It is over: by itself, stopped early, or with a problem."""
        ...


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How trials are played; none of it changes a trial's own result.

    Attributes:
        at_once: trials at a time; 0 for one a processor.
        gpus_per_trial: GPU share of a trial.
        models: networks of the user's own.
        track: trackers that are told of each trial.
    """

    at_once: int = 0
    gpus_per_trial: float = 0.0
    models: Mapping[str, str]
    track: tuple[str, ...] = ()


def tune_trials(folder: SweepFolder, trials: Sequence[Trial], terms: Terms, engine: Engine, told: Told) -> None:
    """Play trials, each to its end.

    Raises:
        RunError: Ray can't be started.
        UsageError: Ray isn't installed.
    """
    os.environ.update(_QUIET)
    from simulations.ray_workers import RayOptions, ray, start_ray

    from ray import tune  # isort: skip - after what switches its telemetry off

    threads = max(trial.plan.training.threads for trial in trials)
    at_once = min(engine.at_once or max(1, (os.cpu_count() or 1) // threads), len(trials))
    ours = start_ray(RayOptions(workers=at_once * threads))
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("ray.train").setLevel(logging.CRITICAL)
    shutil.rmtree(folder.tune, ignore_errors=True)  # of a sweep that was cut off: it is not needed
    try:
        tune.Tuner(
            tune.with_resources(_trainable(folder, terms, engine), {"cpu": threads, "gpu": engine.gpus_per_trial}),
            param_space={"trial": tune.grid_search([trial.name for trial in trials])},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=at_once, scheduler=_scheduler(trials, terms), reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name=folder.tune.name,
                storage_path=str(folder.path.resolve()),
                verbose=0,
                callbacks=[_callback(told)],
                failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
            ),
        ).fit()
    finally:
        if ours:
            ray.shutdown()


def _trainable(folder: SweepFolder, terms: Terms, engine: Engine) -> Callable[[dict[str, Any]], None]:
    """What a process of Ray's does; it travels by value (as `simulations.ray_workers` says)."""
    home, path, metric = _HOME, str(folder.path.resolve()), terms.metric
    models, track, sweep = dict(engine.models), engine.track, folder.path.name

    def veil_trial(config: dict[str, Any]) -> None:
        import logging
        import sys

        sys.path.insert(0, home)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        from ray import tune

        from simulations.sweep.worker import play

        name = config["trial"]
        play(
            f"{path}/plans/{name}.toml",
            f"{path}/trials/{name}",
            metric=metric,
            models=models,
            track=track,
            called=f"{sweep}-{name}",
            report=tune.report,
        )

    return veil_trial


def _scheduler(trials: Sequence[Trial], terms: Terms) -> Any:
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), by rounds; None where nothing is stopped."""
    if not terms.early_stop:
        return None
    from ray.tune.schedulers import ASHAScheduler

    most = max(trial.plan.federation.rounds for trial in trials)
    return ASHAScheduler(
        time_attr="round",
        metric="value",
        mode="max" if terms.larger else "min",
        max_t=most + 1,  # at the end a trial ends by itself, with its summary
        grace_period=max(1, most // _REDUCTION**2),
        reduction_factor=_REDUCTION,
    )


def _callback(told: Told) -> Any:
    from ray import tune

    class Callback(tune.Callback):
        """Hands on what Tune tells."""

        def __init__(self) -> None:
            self._over: dict[str, str | None] = {}

        def __reduce__(self) -> tuple[Any, ...]:
            return tune.Callback, ()  # Tune keeps a copy on disk, which nobody needs

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            told.began(trial.config["trial"])

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            name = trial.config["trial"]
            if result.get("over"):
                self._over[name] = result.get("problem")
            elif "round" in result:
                told.round(name, int(result["round"]), float(result["value"]))

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            name = trial.config["trial"]
            told.ended(name, name not in self._over, self._over.get(name))

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            told.ended(trial.config["trial"], False, "its process ended")

    return Callback()
