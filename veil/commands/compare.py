"""`veil compare`: finished runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from server.run_comparison import RunComparison


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of two runs or more.", metavar="RUN...")],
    page: Annotated[Path | None, typer.Option("--html", help="Also write a page with curves.", metavar="FILE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
) -> None:
    """Compare runs: what their plans differ in, metrics, privacy, time and traffic."""
    import json

    from server.run_comparison import compare as compared
    from server.run_folder import RunFolder, write_atomically

    found = compared([RunFolder(run) for run in runs])
    if page is not None:
        from server.run_comparison_page import html

        write_atomically(page, html(found).encode())
    if as_json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
        return
    _print(found)
    if page is not None:
        print(f"\npage: {page}")


def _print(found: RunComparison) -> None:
    from rich.console import Console
    from rich.table import Table

    from privacy.report.catalogue import upper
    from server.run_comparison_page import number, size, value

    console = Console(highlight=False, markup=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in found.rows:
        table.add_column(row.name, justify="right", overflow="fold")
    for name in found.metrics:
        table.add_row(name.replace("_", " "), *(number(row.final.get(name)) for row in found.rows))
    private = [row.claim != "none" for row in found.rows]
    if any(private):
        epsilons = ["no bound" if row.epsilon is None else upper(row.epsilon) for row in found.rows]
        table.add_row("epsilon", *(text if yes else "-" for text, yes in zip(epsilons, private, strict=True)))
        table.add_row("  at delta", *(number(row.delta) if row.delta else "-" for row in found.rows))
        table.add_row("  unit", *(row.unit or "nobody" for row in found.rows))
        table.add_row("  trust", *(row.trust for row in found.rows))
        table.add_row("  claim", *(row.claim for row in found.rows))
        table.add_row("  does not hold", *(", ".join(row.conditions) or "-" for row in found.rows))
    else:
        table.add_row("privacy", *("none" for _ in found.rows))
    table.add_row("rounds", *(str(row.rounds) for row in found.rows))
    table.add_row("seconds", *(f"{row.seconds:.1f}" for row in found.rows))
    table.add_row("to clients", *(size(row.down) for row in found.rows))
    table.add_row("from clients", *(size(row.up) for row in found.rows))
    table.add_row("faults", *(str(row.faults) for row in found.rows))
    for key in found.differing:
        table.add_row(key, *(value(row.plan[key]) for row in found.rows))
    console.print(table)
