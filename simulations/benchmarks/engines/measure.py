"""Runs contenders, each in a new process that is watched from outside, one after the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

from security.errors import UsageError
from simulations.benchmarks.engines.data import made
from simulations.benchmarks.engines.environments import pfl_python
from simulations.benchmarks.engines.memory import TreeMemory
from simulations.benchmarks.engines.playing import ENVIRONMENT, Played, Task, read
from simulations.benchmarks.engines.works import Work

CONTENDERS: Final = ("floor", "inline", "ray", "flower", "pfl")
_VEILS: Final = ("inline", "ray")
_DP_ENGINES: Final = ("bookkeeping", "opacus")
_HOME: Final = Path(__file__).resolve().parents[3]  # the folder that holds our packages
_PATIENCE: Final = 1800.0
_MB: Final = 1e6
_NO_DP_SGD: Final = "has no DP-SGD of examples: its mechanisms protect clients"


@dataclass(frozen=True)
class Case:
    """A contender as it takes part in a work.

    Attributes:
        contender: one of `CONTENDERS`.
        dp_engine: for Veil, in a private work.
        named: whether the label names it.
    """

    contender: str
    dp_engine: str = "bookkeeping"
    named: bool = False

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.contender}, {self.dp_engine}" if self.named else self.contender


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one run of a contender took.

    Attributes:
        work: name of the work.
        contender: label of the case.
        repeat: from 1.
        error: why there are no other figures; one line.
        imports: seconds from the process' start until its libraries were imported.
        first: seconds from the process' start until the first round was over.
        later: seconds of each round after it.
        peak: most memory that the process and all it started had at once, in MB.
        change: Euclidean distance from the first model to the last.
        parameters: of the network.
        versions: of what it trained with.
        end: seconds from the last round until all was over, where the contender has anything to do there.
        alone: most memory of the leading process by itself, in MB, where it knows.
    """

    work: str
    contender: str
    repeat: int = 1
    error: str | None = None
    imports: float | None = None
    first: float | None = None
    later: list[float] = field(default_factory=list)
    peak: float | None = None
    change: float | None = None
    parameters: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    end: float | None = None
    alone: float | None = None


def cases(work: Work, contenders: Sequence[str]) -> list[Case]:
    """Who takes part: under privacy each of Veil's grids with each of its engines."""
    found = []
    for contender in contenders:
        if work.private and contender in _VEILS:
            found += [Case(contender, engine, named=True) for engine in _DP_ENGINES]
        else:
            found.append(Case(contender))
    return found


def measure(
    works: Iterable[Work], contenders: Sequence[str], *, rounds: int, repeats: int, processes: int, folder: Path
) -> Iterator[Figures]:
    """All figures as they come: contenders take turns, so that a busy spell of the machine hits all of them.

    Args:
        works: what is trained.
        contenders: who trains it.
        rounds: of each run, at least 2: the first is told apart.
        repeats: runs of each contender in each work.
        processes: that train at once.
        folder: for arrays, and for environments of contenders that need one of their own.
    """
    if rounds < 2:
        raise UsageError("--rounds must be 2 or more: the first round holds the start-up")
    for repeat in range(1, repeats + 1):
        for work in works:
            data = str(made(work, folder / "data").absolute())
            for case in cases(work, contenders):
                task = Task(
                    contender=case.contender,
                    work=work,
                    data=data,
                    rounds=rounds,
                    processes=processes,
                    dp_engine=case.dp_engine,
                )
                yield run(task, case.label, repeat=repeat, folder=folder)


def run(
    task: Task,
    label: str,
    *,
    repeat: int = 1,
    folder: Path = Path("build"),
    command: Sequence[str] | None = None,
    patience: float = _PATIENCE,
) -> Figures:
    """Run a contender once.

    Args:
        task: what it plays.
        label: how it is called in a table.
        repeat: which one.
        folder: as in `measure`.
        command: in place of the contender's own.
        patience: seconds after which it is ended.
    """
    if task.work.private and task.contender == "pfl":
        return Figures(work=task.work.name, contender=label, repeat=repeat, error=_NO_DP_SGD)
    try:
        begun, played, peak = _watched(command or _command(task, folder), patience)
        if isinstance(played, str):
            raise RuntimeError(played)
        _check(played, task)
    except Exception as error:  # whatever it is, the others shall have their turn
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Figures(work=task.work.name, contender=label, repeat=repeat, error=lines[0])
    moments = [begun, *played.rounds]
    spans = [end - start for start, end in pairwise(moments)]
    return Figures(
        work=task.work.name,
        contender=label,
        repeat=repeat,
        imports=played.imported - begun,
        first=spans[0],
        later=spans[1:],
        peak=peak / _MB,
        change=played.change,
        parameters=played.parameters,
        versions=played.versions,
        end=None if played.ended is None else played.ended - played.rounds[-1],
        alone=None if played.alone is None else played.alone / _MB,
    )


def _command(task: Task, folder: Path) -> list[str]:
    python = str(pfl_python(folder / "pfl")) if task.contender == "pfl" else sys.executable
    return [python, "-m", "simulations.benchmarks.engines.contender", task.to_text()]


def _watched(command: Sequence[str], patience: float) -> tuple[float, Played | str, float]:
    """When it was started, what it told, and its peak memory in bytes."""
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        begun = time.monotonic()
        with (
            subprocess.Popen(  # noqa: S603
                command, env=_environment(os.environ), stdout=subprocess.PIPE, stderr=said, text=True
            ) as process,
            TreeMemory(process.pid) as memory,
        ):
            try:
                printed, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"it was not done within {patience:.0f} s") from None
        try:
            return begun, read(printed), memory.peak
        except ValueError as error:
            said.seek(0)
            last = (said.read().strip().splitlines() or [str(error)])[-1]
            raise RuntimeError(f"ended with code {process.returncode}: {last}") from error


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    paths = [str(_HOME), *filter(None, [own.get("PYTHONPATH")])]
    return {**own, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)}


def _check(played: Played, task: Task) -> None:
    """Figures of rounds that left clients out, or changed nothing, are none."""
    if len(played.rounds) != task.rounds:
        raise RuntimeError(f"played {len(played.rounds)} of {task.rounds} rounds")
    for number, updates in enumerate(played.updates, start=1):
        if updates != task.work.cohort:
            raise RuntimeError(f"round {number} has the updates of {updates} of {task.work.cohort} clients")
    if not 0 < played.change < float("inf"):
        raise RuntimeError(f"the model's change is {played.change}")
