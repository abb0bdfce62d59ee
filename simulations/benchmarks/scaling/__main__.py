"""What a client costs in federations of several sizes, from the command line.

python -m simulations.benchmarks.scaling
python -m simulations.benchmarks.scaling --clients 100 1000 --engine inline --rounds 6 --json build/scaling.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from simulations.benchmarks.engines.__main__ import machine
from simulations.benchmarks.scaling.cases import ENGINES, Measured, cases, measure
from simulations.benchmarks.scaling.chart import draw
from simulations.benchmarks.scaling.tables import forecasts, models, tables

_WIDTH = 140


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--clients", nargs="+", type=int, default=[100, 1000, 10_000], help="sizes of the federation")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--cohort", type=int, default=100, help="of the runs in which not everybody takes part")
    parser.add_argument("--rounds", type=int, default=4, help="of each run, at least 2; the first is told apart")
    parser.add_argument("--processes", type=int, default=2, help="actors of the Ray engine")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--plot", type=Path, help="where to draw the cost of a client, as SVG")
    parser.add_argument("--folder", type=Path, default=Path("build/scaling"), help="for arrays")
    given = parser.parse_args(arguments)
    if given.rounds < 2 or min(*given.clients, given.cohort, given.processes) < 1:
        parser.error("--rounds is 2 or more; --clients, --cohort and --processes are 1 or more")
    # A file has no width of its own.
    console, found = Console(width=None if sys.stdout.isatty() else _WIDTH), list[Measured]()
    conditions = {**machine(), "rounds": given.rounds, "processes": given.processes}
    wanted = cases(given.clients, given.engine, cohort=given.cohort)
    for one in measure(wanted, rounds=given.rounds, processes=given.processes, folder=given.folder):
        found.append(one)
        console.print(_line(one), style="dim", markup=False, highlight=False)
    fitted = models(found)
    for table in tables(found, fitted):
        console.print(table)
    if given.json:
        content = {
            **conditions,
            "measured": [asdict(one) for one in found],
            "models": [
                {"engine": engine, "private": private, **asdict(model)} for (engine, private), model in fitted.items()
            ],
            "extrapolated": [asdict(one) for one in forecasts(fitted)],
        }
        _write(given.json, json.dumps(content, indent=1) + "\n")
    if given.plot:
        _write(given.plot, draw(found))


def _line(one: Measured) -> str:
    """How far it is."""
    case, figures = one.case, one.figures
    said = f"{case.engine}{', private' if case.private else ''}: {case.cohort:,} of {case.clients:,} clients"
    if figures.error is not None or figures.first is None:
        return f"{said}: {figures.error}"
    later = " ".join(f"{seconds:.3f}" for seconds in figures.later)
    return f"{said}: first round after {figures.first:.1f} s, then {later}"


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
