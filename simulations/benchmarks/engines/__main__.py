"""The benchmark from the command line: tables, and all figures as a file and a drawing.

python -m simulations.benchmarks.engines
python -m simulations.benchmarks.engines --works B C --contenders floor ray flower --rounds 10 --repeats 5
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulations.benchmarks.engines.chart import draw
from simulations.benchmarks.engines.data import source
from simulations.benchmarks.engines.measure import CONTENDERS, Figures, measure
from simulations.benchmarks.engines.tables import rows, tables
from simulations.benchmarks.engines.works import WORKS

_LIBRARIES: Final = ("torch", "flwr", "ray", "opacus", "numpy")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--works", nargs="+", choices=list(WORKS), default=list(WORKS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--rounds", type=_from(2), default=6, help="of each run, at least 2; the first is told apart")
    parser.add_argument("--repeats", type=_from(1), default=3, help="runs of each contender in each work")
    parser.add_argument("--processes", type=_from(1), default=2, help="that train at once")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--plot", type=Path, help="where to draw the ratios, as SVG")
    parser.add_argument("--folder", type=Path, default=Path("build/engines"), help="for arrays and environments")
    given = parser.parse_args(arguments)
    works = [WORKS[name] for name in given.works]
    console, found = Console(), list[Figures]()
    conditions = {
        **machine(),
        "data": {work.name: source(work) for work in works},
        "works": {work.name: work.as_json() for work in works},
        **{key: getattr(given, key) for key in ("rounds", "repeats", "processes")},
    }
    for one in measure(
        works,
        given.contenders,
        rounds=given.rounds,
        repeats=given.repeats,
        processes=given.processes,
        folder=given.folder,
    ):
        found.append(one)
        console.print(_line(one), style="dim", markup=False, highlight=False)
    for table in tables(found, works):
        console.print(table)
    for row in rows(found):
        if row.error is not None:
            console.print(f"{row.work}, {row.contender}: {row.error}", style="dim", markup=False)
    if given.json:
        _write(given.json, json.dumps({**conditions, "figures": [asdict(one) for one in found]}, indent=1) + "\n")
    if given.plot:
        _write(given.plot, draw(rows(found)))


def machine() -> dict[str, Any]:
    """What figures are worth nothing without: when, on what, with what, and how busy it was before."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        "versions": versions,
    }


def _line(one: Figures) -> str:
    """How far it is."""
    if one.error is not None or one.first is None:
        return f"{one.work} {one.contender} {one.repeat}: {one.error}"
    later = " ".join(f"{seconds:.3f}" for seconds in one.later)
    return f"{one.work} {one.contender} {one.repeat}: first round after {one.first:.1f} s, then {later}"


def _from(least: int) -> Any:
    def count(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return count


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
