"""One trial in a process of Ray's: a Veil run in its own folder, begun or gone on with, that tells how it goes."""

from __future__ import annotations

import fcntl
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from security.errors import VeilError
from server.observer import RoundRecord, Silent
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import read_plan
from simulations.run import Settings, resume_run, start_run

Report = Callable[[dict[str, Any]], None]


@dataclass
class _Teller(Silent):
    """Tells the metric of each round but the last, whose news is the summary's."""

    metric: str
    report: Report
    rounds: int = 0

    def started(self, plan: Plan, clients: int, done: int) -> None:
        self.rounds = plan.federation.rounds

    def round_done(self, record: RoundRecord) -> None:
        value = (record.evaluation or {}).get(self.metric)
        if value is not None and record.round < self.rounds:
            self.report({"round": record.round, "value": value})


def play(
    plan: str,
    folder: str,
    *,
    metric: str,
    models: Mapping[str, str],
    track: tuple[str, ...],
    called: str,
    report: Report,
) -> None:
    """Play a trial to its end; what was played before is not played again.

    Whoever tells of rounds may be told to end: then this process is ended by Ray, in the midst of `report`. The run's
    folder has all rounds that were reported.

    Args:
        plan: path of its resolved plan.
        folder: of its run.
        metric: that is reported.
        models: networks of the user's own.
        track: trackers that are told of it (`server.tracking`).
        called: what they call it.
        report: of Ray Tune.
    """
    place = RunFolder(Path(folder))
    try:
        _wait_for_its_turn(place.path)
        teller = _Teller(metric=metric, report=report)
        settings = Settings(engine="inline", models=models, observer=teller, track=track, called=called)
        if place.plan.is_file():
            for line in place.read_metrics():  # a scheduler that was begun anew compares trials by these
                value = (line.get("evaluation") or {}).get(metric)
                if value is not None and not place.summary.is_file():
                    report({"round": line["round"], "value": value})
            resume_run(place.path, settings)
        else:
            start_run(read_plan(Path(plan)), place.path, settings)
    except VeilError as error:
        report({"over": True, "problem": " ".join(str(error).split())})
    except Exception as error:  # its text could hold records
        where = traceback.extract_tb(error.__traceback__)[-1]
        report({"over": True, "problem": f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"})
    else:
        report({"over": True})


def _wait_for_its_turn(folder: Path) -> None:
    """Wait while another process still has the folder: of a sweep that was killed, the one that is just dying."""
    if folder.is_dir():
        with (folder / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
