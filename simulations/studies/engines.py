"""One scenario with each engine of the private step: the same accuracy, in less time.

    python -m simulations.studies.engines --seeds 3 --out docs/evidence/engines.txt

Runs are played one after the other, each seed with one engine and then with the other, so that both meet the same
machine. Noise and batches are drawn anew in every run: accuracies differ by chance, and by nothing else.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from privacy.dpsgd.engine import DpEngine
from simulations.scenarios import find_plan
from simulations.studies.study import Cell, Result, paired, play, values_of

ENGINES: tuple[DpEngine, ...] = get_args(DpEngine)


def cells(seeds: Sequence[int], scenario: str = "fashion") -> list[Cell]:
    """The study's runs, engines in turn."""
    return [
        Cell(name=engine, plan=find_plan(scenario, (f"training.dp_engine={engine}",)), seed=seed)
        for seed in seeds
        for engine in ENGINES
    ]


def report(results: Sequence[Result]) -> str:
    """The study as text."""
    lines = [f"{'engine':14s}{'mean':>7s}{'least':>7s}{'most':>7s}{'seconds':>9s}"]
    for engine in ENGINES:
        rows = [one for one in results if one.name == engine]
        scores = [100 * one.final["accuracy"] for one in rows]
        seconds = statistics.median(one.seconds for one in rows)
        lines.append(f"{engine:14s}{statistics.fmean(scores):7.2f}{min(scores):7.2f}{max(scores):7.2f}{seconds:9.0f}")
    ours, theirs = ({one.seed: one for one in results if one.name == engine} for engine in ENGINES)
    ratio = statistics.median(theirs[seed].seconds / ours[seed].seconds for seed in ours)
    gap = paired(values_of(results, ENGINES[0], "accuracy"), values_of(results, ENGINES[1], "accuracy"))
    lines.append(f"{ENGINES[1]} takes {ratio:.2f} times as long (median over seeds)")
    lines.append(
        f"accuracy of {ENGINES[0]} less that of {ENGINES[1]}: {100 * gap.mean:+.2f} "
        f"[{100 * gap.low:+.2f}, {100 * gap.high:+.2f}] (95 %, paired by seed)"
    )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.engines", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenario", default="fashion")
    parser.add_argument("--folder", type=Path, default=Path("build/studies/engines"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    results = play(cells(range(1, 1 + given.seeds), given.scenario), given.folder, processes=1, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
