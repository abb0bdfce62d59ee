"""`veil attack`: what a curious server could have seen, by attacks on a simulated round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from simulations.attacks.reconstruction.figures import Seen


def attack(
    what: Annotated[str, typer.Argument(help="Scenario, plan file, or folder of a run.", metavar="PLAN|RUN")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key.", metavar="KEY=VALUE")] = None,
    updates: Annotated[
        int, typer.Option(min=0, help="Updates, or sums, whose images are reconstructed; 0 for none.")
    ] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Of each reconstruction.")] = 200,
    picture: Annotated[
        bool,
        typer.Option("--picture", help="Also write reconstruction.svg, which shows TRAINING RECORDS beside the finds."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Of a plan: folder of the files [default: runs/NAME-attack-TIMESTAMP]. A run has its own."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier attack.")] = False,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print reconstruction.json and nothing else.")] = False,
) -> None:
    """See what a curious server could: play one round, and try to get the records back. A failure proves nothing."""
    import sys

    from simulations.attacks.reconstruction import figures, of_plan

    target = of_plan.find_target(
        what, overrides or (), out=out, force=force, drawn=picture, models=parse_models(models)
    )
    seen, besides = of_plan.attack(
        target,
        inverted=updates,
        iterations=iterations,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    written = of_plan.keep(target, seen, besides)
    if as_json:
        print(figures.as_json(seen), end="")
    else:
        _print(seen, written)
    if picture and len(written) == 1:
        print("no picture: no image was reconstructed", file=sys.stderr)


def _print(seen: Seen, written: tuple[Path, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from privacy.report.catalogue import catalogue
    from privacy.report.reconstructed import reconstruction_of, scores
    from privacy.report.seen_words import SeenWords
    from simulations.attacks.reconstruction.figures import as_json

    found, console = reconstruction_of(as_json(seen), seen.plan), Console(highlight=False, markup=False, soft_wrap=True)
    words = SeenWords(found, catalogue("en"))
    console.print(f"{words.sees().unescape()}\n{words.played().unescape()}\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("looked for", "measure", "found", "without looking"):
        table.add_column(title, justify="left" if title in ("looked for", "measure") else "right")
    last = ""
    for one in scores(found):
        way, measure = words.way(one).unescape(), words.measure(one).unescape()
        table.add_row("" if way == last else way, measure, words.figure(one), words.guess(one))
        last = way
    console.print(table)
    for text in words.left_out():
        console.print(f"not tried: {text.unescape()}")
    console.print(f"\n{words.limits().unescape()}")
    for path in written:
        console.print(f"written: {path}{' (shows training records)' if path.suffix == '.svg' else ''}")
