"""Many runs of named plans with several seeds: played once, kept as lines, told as figures.

A study is a list of cells. Finished ones are kept in a file and not played again, so a study that was cut off goes on
where it was; a cell whose plan has changed is another cell.
"""

from __future__ import annotations

import math
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from scipy import stats

from shared_models.plan import Plan
from shared_models.plan_file import plan_from, write_plan
from shared_models.resolve import resolve
from simulations.kept import keep, read_kept
from simulations.run import Settings, start_run

T = TypeVar("T")

_KEPT = "results.jsonl"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study.

    Attributes:
        name: of the row that it belongs to.
        plan: as a person would write it.
        seed: in place of the plan's.
    """

    name: str
    plan: Plan
    seed: int

    def resolved(self) -> Plan:
        """The plan that is played.

        Raises:
            UsageError: it can't be.
        """
        return resolve(self.plan.model_copy(update={"seed": self.seed}))


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell.

    Attributes:
        name, seed: of the cell.
        digest: of its resolved plan.
        final: metrics of the last model.
        epsilon: largest of all clients; None without privacy.
        noise_multiplier: of the plan; None without privacy.
        seconds: wall time.
        up, down: bytes on the wire; None where they aren't told.
        baselines: metrics by name, where the plan asks for them.
    """

    name: str
    seed: int
    digest: str
    final: dict[str, float]
    epsilon: float | None
    noise_multiplier: float | None
    seconds: float
    up: int | None
    down: int | None
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)


def play(
    cells: Sequence[Cell], folder: Path, *, processes: int = 1, say: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Play what isn't played yet; the results in the order of the cells.

    Args:
        cells: what is asked for.
        folder: where results are kept.
        processes: how many runs at once; each computes with its plan's own threads.
        say: is told of each that is done.

    Raises:
        UsageError, RunError: a cell can't be played; those before it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell, result in zip(cells, played(cells, folder), strict=True) if result is None]
    for done, result in enumerate(_played(missing, processes), 1):
        keep(folder / _KEPT, result)
        say(f"{done}/{len(missing)}  {result.name}  seed {result.seed}  {result.final}  {result.seconds:.0f} s")
    return [result for result in played(cells, folder) if result is not None]


def played(cells: Sequence[Cell], folder: Path) -> list[Result | None]:
    """Results in the order of the cells, None where a cell isn't played yet.

    Args:
        cells: what is asked for.
        folder: where results are kept.
    """
    known = {(one.name, one.seed, one.digest): one for one in read_kept(folder / _KEPT, Result)}
    return [known.get((cell.name, cell.seed, cell.resolved().digest())) for cell in cells]


def _played(cells: Sequence[Cell], processes: int) -> Iterable[Result]:
    return side_by_side(_run, [(cell.name, cell.seed, write_plan(cell.plan)) for cell in cells], processes)


def side_by_side(run: Callable[..., T], given: Sequence[tuple[Any, ...]], processes: int) -> Iterator[T]:
    """Results of a function of a module's, as they come; in this process, or in some of their own.

    Args:
        run: a function that other processes can import.
        given: its arguments, each of which is one call.
        processes: how many calls at once.
    """
    if processes == 1:
        yield from (run(*one) for one in given)
        return
    with ProcessPoolExecutor(min(processes, max(1, len(given))), mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(run, *one) for one in given]):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all that wait would be played before anybody hears of it
            raise


def _run(name: str, seed: int, text: str) -> Result:
    import tomllib

    cell = Cell(name=name, seed=seed, plan=plan_from(tomllib.loads(text), where=name))
    plan = cell.resolved()
    place = Path(tempfile.mkdtemp(prefix="veil-study-", dir=os.environ.get("TMPDIR")))
    try:
        run, _ = start_run(plan, place / "run", Settings(engine="inline"))
        summary = run.read_summary()
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = (summary.get("baselines") or {}).get("rows", [])
    return Result(
        name=name,
        seed=seed,
        digest=plan.digest(),
        final=summary["final"],
        epsilon=summary["privacy"].get("epsilon_max"),
        noise_multiplier=plan.privacy.noise_multiplier if plan.is_private else None,
        seconds=summary["seconds"]["total"],
        up=summary["bytes"]["up"],
        down=summary["bytes"]["down"],
        baselines={row["name"]: row["metrics"] for row in rows},
    )


# --- figures


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and how well it is known.

    Attributes:
        mean: of the values.
        low, high: 95 % interval by Student's t; both the mean for a single value.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float]) -> Interval:
    """The mean of independent values with its 95 % interval. Raises ValueError without any."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean=mean, low=mean, high=mean, n=len(values))
    wide = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean=mean, low=mean - wide, high=mean + wide, n=len(values))


def values_of(results: Iterable[Result], name: str, metric: str) -> dict[int, float]:
    """A row's metric by seed."""
    return {one.seed: one.final[metric] for one in results if one.name == name}


def paired(one: dict[int, float], other: dict[int, float]) -> Interval:
    """The mean of `one - other` over the seeds that both have."""
    return interval([one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())])
