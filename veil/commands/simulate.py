"""`veil simulate`: run a plan on this machine, watch it, and see what it cost."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from server.federation import Outcome
    from server.run_folder import RunFolder
    from simulations.ray_workers import RayWorkers


class EngineName(StrEnum):
    """Where virtual clients run."""

    ray = "ray"
    inline = "inline"


def simulate(
    plan: Annotated[str | None, typer.Argument(help="Scenario name, or path of a TOML plan [default: digits].")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key of the plan.", metavar="KEY=VALUE")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder [default: runs/NAME-TIMESTAMP].")] = None,
    engine: Annotated[EngineName, typer.Option(help="Ray actors, or all in this process.")] = EngineName.ray,
    resume: Annotated[Path | None, typer.Option(help="Go on with the run in this folder.", metavar="RUN")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds; print mean and deviation.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0 for one a processor.")] = 0,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPU share of a Ray actor.")] = 0.0,
    ray_address: Annotated[str | None, typer.Option(help="Address of a running Ray cluster.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Tell a tracker too; see docs/tracking.md.", metavar="KIND=WHERE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
) -> int:
    """Simulate a federation and write a run's folder."""
    from security.errors import UsageError
    from simulations.scenarios import find_plan

    if resume is not None and (plan is not None or overrides or out is not None or repeat > 1):
        raise UsageError("--resume goes on with the plan in the run's folder; give no PLAN, --set, --out or --repeat")
    found = None if resume is not None else find_plan(plan or "digits", overrides or ())
    most = None if found is None else found.data.clients
    with _actors(engine, repeat, workers, gpus_per_worker, ray_address, most) as actors:
        from simulations.run import Settings, new_folder, resume_run, start_run
        from veil.commands.console import Console

        console = Console(as_json=as_json)
        settings = Settings(
            engine=engine.value,
            workers=workers,
            gpus_per_worker=gpus_per_worker,
            ray_address=ray_address,
            actors=actors,
            models=parse_models(models),
            observer=console,
            track=tuple(track or ()),
        )
        if found is None:
            assert resume is not None
            with console.watching(resume):
                folder, outcome = resume_run(resume, settings)
            console.closing(folder, already_done=outcome is None)
            return _exit_code(outcome, folder)
        out = out or new_folder(found.name)
        if repeat > 1:
            from simulations.repeat import repeat_run

            with console.watching(out):
                repeated = repeat_run(found, repeat, out, settings)
            console.closing_repeats(repeated)
            return 3 if "budget" in repeated.stopped else 0
        with console.watching(out):
            folder, outcome = start_run(found, out, settings)
        console.closing(folder)
        return _exit_code(outcome, folder)


def _actors(
    engine: EngineName, repeat: int, workers: int, gpus_per_worker: float, address: str | None, most: int | None
) -> AbstractContextManager[RayWorkers | None]:
    """Ray's actors, on their way while the rest is imported; None where the run has none, or several runs follow."""
    if engine is EngineName.inline or repeat > 1:
        return nullcontext()
    from simulations.early_ray import early_workers

    return early_workers(workers=workers, gpus_per_worker=gpus_per_worker, address=address, most=most)


def _exit_code(outcome: Outcome | None, folder: RunFolder) -> int:
    stopped = folder.read_summary()["stopped"] if outcome is None else outcome.stopped
    return {"failed": 1, "budget": 3}.get(stopped or "", 0)
