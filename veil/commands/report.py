"""`veil report`: the privacy-budget report of a run, of several, or of a site's own ledger."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Language(StrEnum):
    """What a report is written in."""

    en = "en"
    zh = "zh"


def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folder of a run; several are compared.", metavar="RUN...")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="A ledger instead of a run: what its data has spent.")] = None,
    statements: Annotated[
        list[Path] | None, typer.Option("--statement", help="With --ledger: a signed statement to check.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to [default: the run's, or here].")] = None,
    language: Annotated[Language, typer.Option("--lang", help="English or Chinese.")] = Language.en,
    pdf: Annotated[bool, typer.Option("--pdf", help="Also write report.pdf.")] = False,
    picture: Annotated[
        bool,
        typer.Option("--picture", help="Name the picture of training records that veil attack --picture has made."),
    ] = False,
) -> None:
    """Write the privacy-budget report: who is protected from whom, how strongly, and what is left."""
    from security.errors import UsageError
    from server.report import write_comparison, write_ledger_report, write_report
    from server.run_folder import RunFolder

    folders = [RunFolder(run) for run in runs or ()]
    if (ledger is None) == (not folders):
        raise UsageError("give the folder of a run (or several), or --ledger FILE")
    if picture and len(folders) != 1:
        raise UsageError("--picture: only for the report of one run")
    if ledger is not None:
        found = write_ledger_report(ledger, out or Path(), statements or (), language=language.value, as_pdf=pdf)
    elif len(folders) > 1:
        if pdf:
            raise UsageError("--pdf: only for the report of one run")
        found = write_comparison(folders, (out or Path()) / "comparison.html", language=language.value)
    else:
        if out is not None:
            raise UsageError("--out: the report of a run is written into its folder")
        found = write_report(folders[0], language=language.value, as_pdf=pdf, picture=picture)
    print(f"report: {found}")
