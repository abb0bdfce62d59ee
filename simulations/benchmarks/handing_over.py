"""A trained model in the forms in which it is handed over, beside the network in torch.

    python -m simulations.benchmarks.handing_over
    python -m simulations.benchmarks.handing_over --models cnn mlp --json build/handing_over.json

Each network is trained for a few rounds on real data without privacy (in `build/handing_over`; a finished run is not
repeated) and exported by what `veil export` does: as TorchScript, as ONNX, with weights as eight-bit integers, and with
some of the smallest weights set to zero. The largest difference of a logit (over the largest logit), size and times are
those of `check.json`, on 256 made-up examples; times are medians of one thread's processor time. The score is the
accuracy on the data's test records, of the file itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from client.datasets.partition import test_records
from client.workplace import split_key
from security.errors import UsageError
from server.export.check import BATCH
from server.export.export import export_run, trained_network
from server.export.formats import Format, runner
from server.export.served import served
from server.run_folder import RunFolder
from shared_models.cards import card_for
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.run import Settings, resume_run, start_run

WORK: Final = Path("build/handing_over")
_AT_ONCE: Final = 256


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network and how it is trained here."""

    data: Mapping[str, Any]
    model: str
    options: Mapping[str, Any]
    rounds: int
    training: Mapping[str, Any]

    def plan(self, name: str) -> Plan:
        """The plan of its run."""
        return Plan.model_validate(
            {
                "name": name,
                "seed": 7,
                "data": {"partition": {"kind": "iid", "clients": 4}, **self.data},
                "model": {"name": self.model, "options": dict(self.options)},
                "training": {"optimizer": "adam", "expected_batch_size": 32, **self.training},
                "privacy": {"trust": "none"},
                "federation": {"rounds": self.rounds},
                "evaluation": {"every": self.rounds, "where": "server"},
            }
        )


def _case(
    data: Mapping[str, Any], model: str, rounds: int, options: Mapping[str, Any] | None = None, **more: Any
) -> Case:
    return Case(
        data=data,
        model=model,
        options=options or {},
        rounds=rounds,
        training={"epochs": 1, "learning_rate": 2e-3, **more},
    )


CASES: Final[Mapping[str, Case]] = {
    "cnn": _case({"name": "digits"}, "cnn", 8),
    "resnet": _case({"name": "digits"}, "resnet", 4),
    "cnn1d": _case({"name": "watch"}, "cnn1d", 4),
    "recurrent": _case({"name": "watch"}, "recurrent", 4),
    "transformer": _case({"name": "sentences", "text": {"places": 32}}, "transformer", 4),
    "mlp": _case({"name": "adult"}, "mlp", 3, {"hidden": [64]}),
    "minilm": _case(
        {"name": "sentences", "text": {"tokens": "wordpiece", "places": 32}}, "minilm", 1, epochs=None, steps=10
    ),
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """A form in which a model is handed over."""

    name: str
    format: Format
    quantise: bool = False
    prune: float | None = None


OUTPUTS: Final = (
    Output(name="torchscript", format="torchscript"),
    Output(name="onnx", format="onnx"),
    Output(name="onnx, int8", format="onnx", quantise=True),
    Output(name="onnx, 30 % pruned", format="onnx", prune=0.3),
    Output(name="onnx, 70 % pruned", format="onnx", prune=0.7),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One form of one network; that of torch itself has no difference.

    Attributes:
        score: accuracy on the data's test records.
        difference: largest of a logit, over the largest logit.
        milliseconds, batch_milliseconds: of one example, and of 64.
        error: why there is none.
    """

    model: str
    data: str
    output: str
    score: float | None = None
    difference: float | None = None
    bytes: int | None = None
    milliseconds: float | None = None
    batch_milliseconds: float | None = None
    error: str = ""


def measure(name: str, plan: Plan, folder: Path, outputs: Sequence[Output] = OUTPUTS) -> list[Row]:
    """Train, unless that is done, and hand over in all forms."""
    run = RunFolder(folder)
    settings = Settings(engine="inline")
    if not run.plan.is_file():
        start_run(plan, folder, settings)
    elif not run.summary.is_file():
        resume_run(folder, settings)
    resolved = run.read_plan()
    if resolved.digest() != resolve(plan).digest():
        raise UsageError(f"{folder}: holds a run of another plan; remove it, or give another --work")
    x, y = _test_part(resolved)
    rows: list[Row] = []
    whole = served(resolved, trained_network(run))
    about = partial(Row, model=name, data=resolved.data.name)
    for output in outputs:
        out = folder / "export" / output.name.replace(" ", "").replace(",", "-").replace("%", "")
        try:
            done = export_run(run, output.format, out=out, quantise=output.quantise, prune=output.prune)
        except UsageError as error:
            rows.append(about(output=output.name, error=str(error)))
            continue
        found = done.checked
        if not rows:
            size = sum(parameter.numel() * parameter.element_size() for parameter in whole.parameters())
            rows.append(
                about(
                    output="torch",
                    score=_accuracy(whole, x, y),
                    bytes=size,
                    milliseconds=found.torch_milliseconds,
                    batch_milliseconds=found.torch_batch_milliseconds,
                )
            )
        rows.append(
            about(
                output=output.name,
                score=_accuracy(runner(output.format, done.path, whole), x, y),
                difference=found.largest_difference,
                bytes=found.bytes,
                milliseconds=found.milliseconds,
                batch_milliseconds=found.batch_milliseconds,
            )
        )
    return rows


def _test_part(plan: Plan) -> tuple[Tensor, Tensor]:
    """The test records as the data has them before they are normalised, which is what a handed-over model takes."""
    records = test_records(plan.data, seed=plan.seed, split_key=split_key(plan), whole=False, parts=False)
    card = card_for(plan.data)
    raw = records.x if card.vocabulary is not None or card.columns else records.x * card.std + card.mean
    return raw, records.y


def _accuracy(run: Any, x: Tensor, y: Tensor) -> float:
    right = 0
    with torch.inference_mode():
        for start in range(0, len(x), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            right += int((run(x[part]).argmax(-1) == y[part]).sum())
    return right / len(x)


def table(rows: Sequence[Row]) -> Table:
    """For people."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title in TITLES:
        made.add_column(title, justify="left" if title in TITLES[:2] else "right", no_wrap=True)
    for cells in _cells(rows):
        made.add_row(*cells)
    return made


def markdown(rows: Sequence[Row]) -> str:
    """For docs/handing-over.md."""
    lines = [TITLES, tuple("---" if title in TITLES[:2] else "---:" for title in TITLES), *_cells(rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


TITLES: Final = ("network", "form", "accuracy", "largest difference", "kB", "ms, 1", f"ms, {BATCH}")


def _cells(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for row in rows:
        if row.error:
            found.append((f"{row.model} ({row.data})", row.output, "can't be", "", "", "", ""))
            continue
        assert row.score is not None
        assert row.bytes is not None
        difference = "" if row.difference is None else f"{row.difference:.1e}"
        times = (f"{row.milliseconds:.3g}", f"{row.batch_milliseconds:.3g}")
        figures = (f"{row.score:.4f}", difference, f"{row.bytes / 1e3:,.0f}", *times)
        found.append((f"{row.model} ({row.data})", row.output, *figures))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.handing_over", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--work", type=Path, default=WORK, help="where runs are kept")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/handing-over.md has it")
    given = parser.parse_args(arguments)
    console, rows = Console(), []
    for name in given.models:
        with console.status(name):
            rows += measure(name, CASES[name].plan(name), given.work / name)
    print(markdown(rows)) if given.markdown else console.print(table(rows))
    for row in rows:
        if row.error:
            console.print(f"{row.model}, {row.output}: {row.error}", style="dim", markup=False)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
