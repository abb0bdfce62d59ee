"""`veil cross-validate`: how good a plan's model is at a client that had no part in training it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.commands.simulate import EngineName
from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from simulations.cross_validation import CrossValidation


def cross_validate(
    plan: Annotated[str, typer.Argument(help="Scenario name, or path of a TOML plan.", metavar="PLAN")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key.", metavar="KEY=VALUE")] = None,
    folds: Annotated[
        int | None, typer.Option(help="So many groups of clients, in place of one client at a time.", min=2)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder; finished folds in it are kept [default: runs/NAME-folds-TIMESTAMP].")
    ] = None,
    engine: Annotated[EngineName, typer.Option(help="Ray actors, or all in this process.")] = EngineName.inline,
    workers: Annotated[int, typer.Option(min=0, help="Ray actors; 0 for one a processor.")] = 0,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print cross-validation.json and nothing else.")] = False,
) -> None:
    """Leave each client out in turn: train on the others, judge the model on its records."""
    import json
    import sys

    from simulations.cross_validation import cross_validate as play
    from simulations.run import Settings, new_folder
    from simulations.scenarios import find_plan

    found = find_plan(plan, overrides or ())
    path = out or new_folder(f"{found.name}-folds")
    settings = Settings(engine=engine.value, workers=workers, models=parse_models(models))
    try:
        result = play(found, folds, path, settings, say=lambda text: print(text, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"interrupted; finished folds are kept: give the same command with --out {path}", file=sys.stderr)
        raise
    if as_json:
        print(json.dumps(result.to_json(), indent=2))
        return
    _print(result)


def _print(result: CrossValidation) -> None:
    from rich.console import Console
    from rich.table import Table

    from simulations.cross_validation_page import COLUMNS

    console = Console(highlight=False, markup=False, soft_wrap=True)
    there = [name for name in COLUMNS if any(name in row for row in result.rows.values())]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("left out", "examples", *there):
        table.add_column(title.replace("_", " "), justify="left" if title == "left out" else "right")
    for client, row in result.rows.items():
        table.add_row(client, f"{row['examples']:.0f}", *(f"{row[n]:.4f}" if n in row else "-" for n in there))
    spread = [result.spread(name) for name in there]
    table.add_row("mean over clients", "", *("-" if one is None else f"{one['mean']:.4f}" for one in spread))
    console.print(table)
    cost = result.privacy
    if cost is None:
        console.print("privacy: none; plain federated learning protects nobody")
    else:
        whole = "no bound" if cost["epsilon_all_folds"] is None else f"{cost['epsilon_all_folds']:.4g}"
        console.print(
            f"privacy: a fold costs epsilon {cost['epsilon_a_fold']:.4g}; a client takes part in "
            f"{cost['folds_a_client']} folds and would have paid epsilon {whole} for all of them (delta "
            f"{cost['delta']:g}; {cost['unit']}; trust {cost['trust']}; {cost['relation']}; {cost['accountant']})"
        )
    console.print("note: a simulation; the figures at clients that were left out are exact, and no private release")
    console.print(f"\nfolder: {result.path}\npage: {result.path / 'cross-validation.html'}")
