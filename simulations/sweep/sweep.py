"""A sweep from plan to figures: fix the trials, have Ray Tune play those that are missing, write down what came of it.

The search looks at one figure of each trial: the metric of its last model, as the plan has it judged. Which trials
there are never hangs on a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from security.errors import UsageError
from server.evaluation import LARGER_IS_BETTER
from server.tracking import parse_trackers
from shared_models import own
from simulations.run import load_data, new_folder
from simulations.scenarios import find_plan
from simulations.sweep.book import JUDGED, Row, SweepFolder, Terms, in_order
from simulations.sweep.frontier import write_frontier
from simulations.sweep.space import parse_axes, points
from simulations.sweep.trials import Trial, trials_of
from simulations.sweep.tuning import Engine, tune_trials

# What a trial may be chosen by, beside what a plan can name: whether more is better.
METRICS: Final = {**LARGER_IS_BETTER, "precision": True, "recall": True, "perplexity": False}


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is searched.

    Attributes:
        plan: scenario or plan file.
        overrides: `KEY=VALUE`, for all trials.
        over: texts as after `--over`.
        metric: to choose by; None for the plan's own.
        samples: how many points to draw; None for a grid.
        random: draw from listed values too.
        charge: give the plan's epsilon to the whole search.
        early_stop: stop trials that fall behind.
    """

    plan: str
    overrides: tuple[str, ...] = ()
    over: tuple[str, ...]
    metric: str | None = None
    samples: int | None = None
    random: bool = False
    charge: bool = False
    early_stop: bool = False


class SweepObserver(Protocol):
    """Is told how a sweep goes."""

    def begins(self, folder: SweepFolder, trials: Sequence[Trial], rows: Sequence[Row], terms: Terms) -> None:
        """All is checked; what was played before is in `rows`."""
        ...

    def trial_began(self, row: Row) -> None:
        """A trial plays."""
        ...

    def trial_round(self, row: Row) -> None:
        """A trial's model was judged."""
        ...

    def trial_ended(self, row: Row) -> None:
        """A trial is over, or broken."""
        ...


def start_sweep(search: Search, out: Path | None, engine: Engine, observer: SweepObserver) -> dict[str, Any]:
    """Play a sweep in a new folder (`runs/NAME-sweep-TIMESTAMP` unless named); what `sweep.json` holds.

    Raises:
        UsageError: the space, a plan, the data or the folder won't do; nothing was run.
        RunError: Ray can't be started, or the disk can't be written.
    """
    own.bind(engine.models)
    parse_trackers(engine.track)
    axes = parse_axes(search.over)
    asked = find_plan(search.plan, search.overrides)
    tried = points(axes, samples=search.samples, random=search.random, seed=asked.seed)
    trials = trials_of(search.plan, search.overrides, tried, charge=search.charge)
    terms = _terms(search, trials)
    _check_data(trials)
    folder = SweepFolder(out or new_folder(f"{asked.name}-sweep"))
    folder.create(trials, terms)
    with folder.locked():
        return _play(folder, terms, engine, observer)


def resume_sweep(path: Path, engine: Engine, observer: SweepObserver) -> dict[str, Any]:
    """Go on with a sweep: trials that are over are not played again, one that was cut off goes on where it was.

    Raises:
        UsageError: there is no sweep, it is damaged, or another process plays it.
        RunError: as `start_sweep`.
    """
    own.bind(engine.models)
    parse_trackers(engine.track)
    folder = SweepFolder(path)
    folder.read()
    with folder.locked():
        return _play(folder, None, engine, observer)


def _play(folder: SweepFolder, terms: Terms | None, engine: Engine, observer: SweepObserver) -> dict[str, Any]:
    trials, before, terms = folder.load()
    rows = {row.name: folder.look(trial, terms, row) for trial, row in zip(trials, before, strict=True)}
    missing = [trial for trial in trials if rows[trial.name].state in ("waiting", "broken")]
    for trial in missing:
        rows[trial.name] = replace(rows[trial.name], state="waiting", reason=None)
    folder.write(trials, list(rows.values()), terms)
    observer.begins(folder, trials, list(rows.values()), terms)
    if missing:
        tune_trials(folder, missing, terms, engine, _Told(folder, trials, terms, rows, observer))
    book = folder.write(trials, list(rows.values()), terms)
    write_frontier(folder.frontier, in_order(list(rows.values()), larger=terms.larger), trials, terms)
    return book


class _Told:
    """Keeps the rows, and the book on disk, as Tune tells of trials."""

    def __init__(
        self,
        folder: SweepFolder,
        trials: Sequence[Trial],
        terms: Terms,
        rows: dict[str, Row],
        observer: SweepObserver,
    ) -> None:
        self._folder, self._trials, self._terms = folder, trials, terms
        self._rows, self._observer = rows, observer

    def began(self, name: str) -> None:
        self._observer.trial_began(self._rows[name])

    def round(self, name: str, number: int, value: float) -> None:
        self._rows[name] = replace(self._rows[name], rounds=number, value=value)
        self._observer.trial_round(self._rows[name])

    def ended(self, name: str, early: bool, problem: str | None) -> None:
        trial = next(trial for trial in self._trials if trial.name == name)
        row = self._folder.look(trial, self._terms, self._rows[name])
        if early:
            row = replace(self._rows[name], state="stopped-early")
        elif row.state == "waiting":
            row = replace(row, state="broken", reason=problem or "it ended without a summary")
        self._rows[name] = row
        self._folder.write(self._trials, list(self._rows.values()), self._terms)
        self._observer.trial_ended(row)


def _terms(search: Search, trials: Sequence[Trial]) -> Terms:
    plans = [trial.plan for trial in trials]
    metrics = {plan.evaluation.metric for plan in plans}
    if search.metric is None and len(metrics) > 1:
        raise UsageError("--over evaluation.metric: trials are compared by one metric; name it with --metric")
    metric = search.metric or plans[0].evaluation.metric
    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: no such metric; allowed: {', '.join(METRICS)}")
    wheres = {plan.evaluation.where for plan in plans}
    if len(wheres) > 1:
        raise UsageError("--over evaluation.where: figures of unlike records can't be compared; leave it out")
    by_class = all(plan.evaluation.per_class for plan in plans)
    countable = ("accuracy", "balanced_accuracy") if by_class else ("accuracy",)
    if "clients" in wheres and metric not in countable:
        raise UsageError(f"--metric {metric}: with evaluation.where = 'clients' allowed: {', '.join(countable)}")
    return Terms(
        metric=metric,
        larger=METRICS[metric],
        charge=search.charge,
        early_stop=search.early_stop,
        judged=JUDGED[wheres.pop()],
    )


def _check_data(trials: Sequence[Trial]) -> None:
    """Load the data of each kind of trial once: what is wrong with it is found before anything starts."""
    seen = set()
    for trial in trials:
        plan = trial.plan
        key = (plan.seed, repr(plan.data), repr(plan.features), plan.evaluation.where, plan.federation.min_clients)
        if key not in seen:
            seen.add(key)
            load_data(plan)
