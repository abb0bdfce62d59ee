"""`veil sweep`: try many settings of a plan, compare them, and see what the search itself cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.own_models import HELP, parse_models


def sweep(
    plan: Annotated[str | None, typer.Argument(help="Scenario name, or path of a TOML plan.", metavar="PLAN")] = None,
    over: Annotated[
        list[str] | None,
        typer.Option("--over", help="What to try: KEY=A,B,C, or KEY=log:1e-3..1, uniform:0..1, int:1..10."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Override a key for all trials.", metavar="KEY=VALUE")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="To compare by [default: the plan's evaluation.metric].")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many points to draw, in place of a grid.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Draw from listed values too.")] = False,
    charge_search: Annotated[
        bool, typer.Option("--charge-search", help="The plan's epsilon is for all trials together.")
    ] = False,
    early_stop: Annotated[
        bool, typer.Option("--early-stop", help="Stop trials that fall behind (ASHA); they cost what they planned.")
    ] = False,
    at_once: Annotated[int, typer.Option(min=0, help="Trials at a time; 0 for one a processor.")] = 0,
    gpus_per_trial: Annotated[float, typer.Option(min=0, help="GPU share of a trial.")] = 0.0,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder [default: runs/NAME-sweep-TIMESTAMP].")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the sweep in this folder.", metavar="DIR")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Tell a tracker too; see docs/tracking.md.", metavar="KIND=WHERE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print sweep.json and nothing else.")] = False,
) -> int:
    """Try many settings of a plan on Ray Tune, and say what the search itself costs in privacy."""
    from security.errors import UsageError

    if resume is not None and any((plan, over, overrides, metric, samples, random, charge_search, early_stop, out)):
        raise UsageError(
            "--resume goes on with what is in the sweep's folder; give no PLAN and nothing that changes it"
        )
    if resume is None and plan is None:
        raise UsageError("give a PLAN to sweep over, or --resume DIR")
    from simulations.sweep.sweep import Search, resume_sweep, start_sweep
    from simulations.sweep.tuning import Engine
    from veil.commands.sweep_console import SweepConsole

    console = SweepConsole(as_json=as_json)
    engine = Engine(
        at_once=at_once, gpus_per_trial=gpus_per_trial, models=parse_models(models), track=tuple(track or ())
    )
    with console.watching():
        if resume is not None:
            book = resume_sweep(resume, engine, console)
        else:
            assert plan is not None
            search = Search(
                plan=plan,
                overrides=tuple(overrides or ()),
                over=tuple(over or ()),
                metric=metric,
                samples=samples,
                random=random,
                charge=charge_search,
                early_stop=early_stop,
            )
            book = start_sweep(search, out, engine, console)
    console.closing(book)
    return 1 if any(row["state"] == "broken" for row in book["trials"]) else 0
