"""`veil explain`: what an answer of a run's model rests on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from veil.own_models import HELP, parse_models


def explain(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    input_: Annotated[
        Path | None,
        typer.Option(
            "--input", help="Your question: .csv, .json, .jsonl, .txt, .npy, .npz, .png, .jpg.", metavar="FILE"
        ),
    ] = None,
    row: Annotated[int | None, typer.Option(help="Which of the file's questions, from 1.")] = None,
    against: Annotated[
        int | None, typer.Option(help="Another of the file's questions, to compare with [default: an empty one].")
    ] = None,
    text: Annotated[str | None, typer.Option(help="Your question, of a model that reads texts.")] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain [default: the answer].", metavar="CLASS")] = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Of the integral [default: 64, more while figures don't add up].", max=4096),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The model with the best evaluation, not the last.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write it: .html, .png or .svg.", metavar="FILE")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON and nothing else.")] = False,
) -> None:
    """Say what an answer rests on: which columns, words, pixels or times spoke for it, and which against.

    Nothing is sent anywhere: it is computed here, from the run's model and your question (extra 'explain').
    """
    import json

    from server.explain.explain import explain as explained
    from server.explain.page import check_ending, lines, render
    from server.explain.question import read_question
    from server.export.export import trained_network
    from server.export.inputs import Inputs
    from server.run_folder import RunFolder, write_atomically
    from shared_models import own

    if out is not None:
        check_ending(out)
    own.bind(parse_models(models))
    folder = RunFolder(run)
    plan = folder.read_plan()
    question = read_question(Inputs.of(plan), file=input_, row=row, text=text)
    other = None if against is None else read_question(Inputs.of(plan), file=input_, row=against, text=text)
    where = "--text" if input_ is None else str(input_) + ("" if row is None else f", question {row}")
    network = trained_network(folder, best=best)
    found = explained(plan, network, question, against=other, target=target, steps=steps, where=where)
    if out is not None:
        write_atomically(out, render(found, out.suffix.lower()))
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
        return
    print("\n".join(lines(found)))
    if out is not None:
        print(f"picture: {out}")
