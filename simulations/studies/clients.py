"""A thousand clients who trust the server: what a clipping norm that adapts is worth, and what correlated noise is.

    python -m simulations.studies.clients --out docs/evidence/clients.txt

Fashion-MNIST, 60 images a client, a linear model on pixels, 100 rounds of 50 clients, client-level epsilon 3 at delta
1e-4 everywhere. First a secret Poisson cohort: the clipping norm fixed well, ten times too large, ten times too small,
or started from each of the three and left to adapt. Then cohorts that may be known, 20 rounds apart for each client, so
five participations: independent noise, priced as those five one after the other, against noise with 20 bands.

Learning rate, steps and the good norm were chosen on 10,000 images held out of the training set, with other seeds, by
`simulations.studies.clients_choice`, which prints that table; the test set is looked at here alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.scenarios import find_plan
from simulations.studies.study import Cell, Result, interval, paired, play, values_of

NORM = 0.2
"""The clipping norm that was best on held-out images."""

TIMES = {"well chosen": 1.0, "10 times too large": 10.0, "10 times too small": 0.1}
PLAIN = "no privacy"
INDEPENDENT = "known cohorts, independent noise"
CORRELATED = "known cohorts, correlated noise"

_FIXED_COHORT = "federation.cohort={ sampling = 'fixed', size = 50 }"


def fixed(start: str) -> str:
    """Of a row."""
    return f"fixed norm, {start}"


def adaptive(start: str) -> str:
    """Of a row."""
    return f"adaptive norm, first {start}"


def cells(seeds: Sequence[int], *, changes: Sequence[str] = (), schema: Mapping[str, str] | None = None) -> list[Cell]:
    """The study's runs: each kind with each seed.

    Args:
        seeds: of partition, cohorts that may be known, and order of records; noise is of the operating system's.
        changes: to every plan, as after --set.
        schema: of the two rows with known cohorts: their cohort, and the noise's bands and separation; by default the
            study's own.
    """
    of = schema or {"cohort": _FIXED_COHORT, "separation": "20"}
    rows: dict[str, tuple[str, ...]] = {PLAIN: ("privacy.trust=none",)}
    for start, times in TIMES.items():
        norm = f"privacy.clipping_norm={NORM * times:g}"
        rows[fixed(start)] = ("privacy.adaptive=", norm)
        rows[adaptive(start)] = (norm,)
    for name, bands in ((INDEPENDENT, "1"), (CORRELATED, of["separation"])):
        table = f"privacy.correlated={{ band = {bands}, separation = {of['separation']} }}"
        rows[name] = ("privacy.adaptive=", f"privacy.clipping_norm={NORM}", of["cohort"], table)
    plans = {name: find_plan("fashion-clients", (*changes, *own)) for name, own in rows.items()}
    return [Cell(name=name, plan=plan, seed=seed) for seed in seeds for name, plan in plans.items()]


def report(results: Sequence[Result]) -> str:
    """The study as text."""
    lines = [
        f"{'1,000 clients, test accuracy in %':40s}{'mean':>7s}{'least':>7s}{'most':>7s}{'epsilon':>9s}{'seconds':>9s}"
    ]
    for name in dict.fromkeys(one.name for one in results):
        rows = [one for one in results if one.name == name]
        scores = [100 * one.final["accuracy"] for one in rows]
        spent, seconds = max(one.epsilon or 0.0 for one in rows), statistics.median(one.seconds for one in rows)
        lines.append(
            f"{name:40s}{statistics.fmean(scores):7.2f}{min(scores):7.2f}{max(scores):7.2f}{spent:9.4f}{seconds:9.0f}"
        )
    lines.append("")
    lines.append("Differences by seed, in points (mean and 95 % interval)")
    pairs = [(adaptive(start), fixed(start)) for start in TIMES] + [(CORRELATED, INDEPENDENT)]
    for one, other in pairs:
        if values_of(results, one, "accuracy") and values_of(results, other, "accuracy"):
            found = paired(values_of(results, one, "accuracy"), values_of(results, other, "accuracy"))
            lines.append(
                f"{f'{one} - {other}':78s}{100 * found.mean:+7.2f}  [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
            )
    return "\n".join(lines) + "\n"


def accuracy(results: Sequence[Result], name: str) -> float:
    """A row's mean accuracy."""
    return interval(list(values_of(results, name, "accuracy").values())).mean


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.clients", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/clients"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    made = cells(range(1, 1 + given.seeds))
    results = play(made, given.folder, processes=given.processes, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
