"""`veil audit`: what really leaks, measured in simulations with canaries, beside what is claimed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from veil.commands.simulate import EngineName
from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from simulations.audit.audit import Audit


_PIPED: Final = 120  # columns, where a line of the table is one line
_LOOKED_FOR: Final = {
    ("gradients", "coordinate"): "planted gradients",
    ("clients", "coordinate"): "planted clients",
    ("mislabelled", "gradient"): "wrong labels: gradient",
    ("mislabelled", "loss"): "wrong labels: loss",
    ("records", "shadow"): "records: shadow models",
    ("round", "round"): "one round, many times",
}


def audit(
    what: Annotated[str, typer.Argument(help="Scenario, plan file, or folder of a run.", metavar="PLAN|RUN")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key.", metavar="KEY=VALUE")] = None,
    canaries: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Planted gradients, or clients; 0 for none [default: as many as could contradict the claim].",
        ),
    ] = None,
    mislabelled: Annotated[int, typer.Option(min=0, help="Records with wrong labels; 0 for none.")] = 200,
    rounds: Annotated[
        int, typer.Option(min=0, help="Times that one round is played with a canary, and without.")
    ] = 1000,
    shadows: Annotated[int, typer.Option(min=0, help="Shadow models of membership inference; 0 for none.")] = 0,
    candidates: Annotated[
        int, typer.Option(min=1, help="Of membership inference: records that are there or not.")
    ] = 200,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the audit's run [default: runs/NAME-audit-TIMESTAMP].")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Ray actors, or all in this process.")] = EngineName.inline,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0 for one a processor.")] = 0,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print audit.json and nothing else.")] = False,
) -> None:
    """Hold a plan's claims against what an adversary finds. Exit code 1: a claim is broken; 4: the audit failed."""
    import json
    import sys

    from privacy.audit.finding import is_broken
    from shared_models import own
    from simulations.audit.audit import Options, as_json_of, audited_plan, keep_beside
    from simulations.audit.audit import audit as play
    from simulations.run import Settings, new_folder

    given = parse_models(models)
    own.bind(given)  # the plan that is read next may name one
    plan, run = audited_plan(what, overrides or ())
    path = out or new_folder(f"{plan.name}-audit")
    settings = Settings(engine=engine.value, workers=workers, models=given)
    options = Options(canaries=canaries, mislabelled=mislabelled, rounds=rounds, shadows=shadows, candidates=candidates)
    found = play(plan, path, settings, options, say=lambda text: print(text, file=sys.stderr, flush=True))
    if as_json:
        print(json.dumps(as_json_of(found), indent=2))
    else:
        _print(found)
    if run is not None:
        keep_beside(run, found)
    if is_broken(found.findings):
        raise typer.Exit(1)


def _print(found: Audit) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table

    from privacy.audit.finding import ESTIMATES, FALSE_ALARMS, is_broken
    from privacy.report.catalogue import catalogue

    width = None if sys.stdout.isatty() else _PIPED
    t, console = catalogue("en"), Console(highlight=False, markup=False, soft_wrap=True, width=width)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("looked for", "method", "found", "claimed", "power", "right", ""):
        numbers = title in ("found", "claimed", "power", "right")
        table.add_column(title, justify="right" if numbers else "left")
    for one in found.findings:
        table.add_row(
            _LOOKED_FOR[one.looked_for, one.way],
            one.method,
            f"{'~' if one.method in ESTIMATES else ''}{one.epsilon:.2f}",
            f"{one.claimed:.2f}",
            f"{one.power:.2f}",
            f"{one.correct}/{one.guesses}" if one.guesses else "",
            one.verdict,
        )
    console.print(table)
    sees = t(f"audit.sees.{found.findings[0].trust}")
    console.print(
        f"\nadversary: {sees}; losses: {t('audit.sees.loss')}\n"
        f"found: lower bounds of epsilon, which hold together in all but {FALSE_ALARMS:.1%} of audits; ~ marks an "
        "estimate, which proves nothing\npower: the most that could be found; below the claim an audit is uninformative"
    )
    if found.inference is not None:
        curve = found.inference.curve
        console.print(
            f"membership by {found.inference.models} shadow models: area {curve.area:.3f} (0.5 is guessing), finds "
            f"{curve.detected_at(0.01):.1%} at 1 % false alarms"
        )
    console.print(f"folder: {found.folder.path}")
    if is_broken(found.findings):
        console.print("BROKEN: more leaks than is claimed; don't rely on this claim")
