"""`veil evaluate`: a finished run's model in detail."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from server.assessment.facts import Evaluation


class FileFormat(StrEnum):
    """Forms of a file of records."""

    csv = "csv"
    hugging_face = "hugging-face"
    image_folder = "image-folder"
    jsonl = "jsonl"
    npz = "npz"
    parquet = "parquet"


def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    by: Annotated[str | None, typer.Option(help="A column of the data: compare its groups.", metavar="COLUMN")] = None,
    positive: Annotated[
        str | None, typer.Option(help="Class that groups' rates are about [default: the last of two].", metavar="CLASS")
    ] = None,
    released: Annotated[
        bool, typer.Option("--released", help="By what clients released by class alone, as in a deployment.")
    ] = False,
    data: Annotated[Path | None, typer.Option(help="Judge it on this file, not on what was held out.")] = None,
    format_: Annotated[FileFormat, typer.Option("--format", help="Form of that file.")] = FileFormat.csv,
    best: Annotated[bool, typer.Option("--best", help="The model with the best evaluation, not the last.")] = False,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print evaluation.json and nothing else.")] = False,
) -> None:
    """Judge a run's model by class, group and client; write evaluation.html and evaluation.json."""
    from server.assessment.facts import json_text
    from server.run_folder import RunFolder
    from simulations.evaluating import Question, evaluate_run

    question = Question(
        by=by,
        positive=positive,
        best=best,
        released=released,
        data=data,
        format=format_.value,
        models=parse_models(models),
    )
    facts, page = evaluate_run(RunFolder(run), question)
    if as_json:
        print(json_text(facts), end="")
        return
    _print(facts)
    print(f"\nevaluation: {page}")


def _print(facts: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from server.assessment.page import MEASURES, interval, shown

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"{facts.name}: {facts.n} {'tokens' if facts.language else 'examples'}; accuracy {interval(facts.accuracy)}"
    )
    if facts.calibration is not None:
        console.print(
            f"expected calibration error {facts.calibration.error:.3f}, Brier score {facts.calibration.brier:.3f}"
        )
    if facts.language is not None:
        console.print(f"perplexity {shown(facts.language.perplexity)}")
    if 0 < len(facts.classes) <= 50:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("class", "examples", "precision", "recall", "F1"):
            table.add_column(title, justify="left" if title == "class" else "right")
        for row in facts.classes:
            precision, recall = (None if one is None else one.value for one in (row.precision, row.recall))
            table.add_row(row.name, str(row.support), shown(precision), shown(recall), shown(row.f1))
        console.print(table)
    for groups in filter(None, (facts.groups, facts.clients)):
        console.print(f"\nby {groups.column}" + (f" (rates of {groups.positive!r})" if groups.positive else ""))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in (groups.column, "examples", "accuracy", "positive", "true pos.", "false pos."):
            table.add_column(title, justify="left" if title == groups.column else "right")
        for group in groups.rows[:50]:
            rates = (group.accuracy, group.positive_rate, group.true_positive_rate, group.false_positive_rate)
            table.add_row(group.name, str(group.n), *(shown(None if one is None else one.value) for one in rates))
        console.print(table)
        if len(groups.rows) > 50:
            console.print(f"... and {len(groups.rows) - 50} more in evaluation.json")
        for gap in groups.gaps:
            console.print(
                f"  gap in {MEASURES[gap.measure]}: {gap.value:.3f} (95 % {gap.low:.3f} to {gap.high:.3f}), "
                f"{gap.highest} above {gap.lowest}"
            )
    for remark in facts.remarks:
        console.print(f"note: {remark}")
