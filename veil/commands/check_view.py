"""What `veil data check` has found, for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from client.datasets.findings import Checked, Finding


def show_check(found: Checked, *, private: bool | None) -> None:
    """A table of findings and a line that says what they come to.

    Args:
        found: by the check.
        private: whether the plan is; None without a plan, and both kinds are shown.
    """
    console = Console(highlight=False, markup=False)
    console.print(f"{found.path}: {found.kind}, {found.records} records", soft_wrap=True)
    if found.findings:
        console.print(_table(found, private))
    for one in found.findings:
        for place in one.places:
            console.print(f"  {one.column or one.code}: {place}", soft_wrap=True)
    console.print(_verdict(found, private), soft_wrap=True)


def _table(found: Checked, private: bool | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("column")
    table.add_column("records", justify="right")
    table.add_column("what")
    fates = {None: ("with privacy", "without"), True: ("training",), False: ("training",)}[private]
    for title in fates:
        table.add_column(title, no_wrap=True)
    for one in found.findings:
        table.add_row(one.column or "(file)", str(one.rows) if one.rows else "", one.text, *_fates(one, private))
    return table


def _fates(one: Finding, private: bool | None) -> tuple[str, ...]:
    return (one.private, one.plain) if private is None else (one.private if private else one.plain,)


def _verdict(found: Checked, private: bool | None) -> str:
    if found.refused(private=True):
        return "not usable: training would refuse the data; mend what is refused"
    used = f"{found.used} of {found.records} records"
    if private:
        return f"usable: the plan would train on {used}"
    if found.refused(private=False):
        kind = "a plan without privacy, or a simulation," if private is None else "the plan"
        rest = f"; under privacy a site would train on {used}" if private is None else ""
        return f"to be mended: {kind} would refuse the data{rest}"
    return f"usable: {used} would be trained on"
