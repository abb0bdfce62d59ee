"""`veil scenarios`: the plans that come with Veil."""

from __future__ import annotations


def scenarios() -> None:
    """List the scenarios that `veil simulate` knows by name."""
    from rich.console import Console
    from rich.table import Table

    from simulations.scenarios import scenario_names, scenario_summary

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("scenario", no_wrap=True)
    table.add_column("what it is")
    for name in scenario_names():
        table.add_row(name, scenario_summary(name))
    Console().print(table)
