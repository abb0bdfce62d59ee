"""`veil export`: a run's model in a form that others take."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from veil.own_models import HELP, parse_models


class FormatName(StrEnum):
    """Forms of the file."""

    onnx = "onnx"
    torchscript = "torchscript"
    safetensors = "safetensors"


class Quantisation(StrEnum):
    """Forms of the weights."""

    int8 = "int8"


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder.", metavar="RUN")],
    format_: Annotated[FormatName, typer.Option("--format", help="Form of the file.")] = FormatName.onnx,
    quantise: Annotated[
        Quantisation | None, typer.Option(help="Weights as eight-bit integers, in a third of the bytes or less (onnx).")
    ] = None,
    prune: Annotated[
        float | None, typer.Option(help="Part of the smallest weights to set to zero.", min=0, max=1)
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="The model with the best evaluation, not the last.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder to write to [default: RUN/export].")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON and nothing else.")] = False,
) -> None:
    """Write a run's model, with its card and what it takes, and compare it with the network in torch."""
    import dataclasses
    import json

    from server.export.export import export_run
    from server.run_folder import RunFolder
    from shared_models import own

    own.bind(parse_models(models))
    done = export_run(RunFolder(run), format_.value, out=out, best=best, quantise=quantise is not None, prune=prune)
    found = done.checked
    if as_json:
        print(json.dumps({"path": str(done.path), "zeros": done.zeros, **dataclasses.asdict(found)}, indent=2))
        return
    print(f"{done.path}: {found.bytes / 1e3:,.0f} kB; beside it MODEL_CARD.md, inputs.json and check.json")
    if done.zeros is not None:
        print(f"pruned: {done.zeros:.0%} of the weights are zero")
    print(
        f"beside torch, on made-up examples: logits differ by {found.largest_difference:.1e} of the largest at most, "
        f"{found.same_guess:.1%} of the guesses are the same"
    )
    print(f"one example: {found.milliseconds:.3g} ms of one processor, in torch {found.torch_milliseconds:.3g} ms")
