"""Every network on data of its kind: without privacy, under local DP, and by joint steps over secure sums.

    python -m simulations.studies.zoo --out docs/evidence/zoo.txt

One row for each network and data set (`zoo_rows`), at most four runs in a row: no privacy, local DP at epsilon 8, and,
up to 200,000 trained parameters, joint DP-SGD at epsilon 3 and 8. Sums are made without masks, which changes no number.
Finished runs are kept and not played again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.registry import build_for
from simulations.studies.study import Cell, Result, play, played
from simulations.studies.zoo_rows import DATA, ROWS, Keys, Row

MOST_JOINT = 200_000
"""Trained parameters of a network that joint steps are tried with."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a row.

    Attributes:
        row: whose it is.
        setting: its name in the row.
        cell: what is played.
        clients: how many take part.
    """

    row: Row
    setting: str
    cell: Cell
    clients: int


def runs(seed: int, rows: Sequence[Row] = ROWS) -> list[Run]:
    """The study's runs."""
    return [
        Run(
            row=row,
            setting=setting,
            cell=Cell(name=f"{row.name}, {setting}", plan=_plan(row, keys), seed=seed),
            clients=DATA[row.data].clients,
        )
        for row in rows
        for setting, keys in row.settings().items()
    ]


def _plan(row: Row, keys: Keys) -> Plan:
    data = DATA[row.data]
    every: Keys = {"evaluation.every": keys["federation.rounds"], **data.keys, **row.keys, **keys}
    if "training.expected_batch_size" not in every:
        rate = every["training.sample_rate"]
        assert isinstance(rate, float)
        every["training.expected_batch_size"] = max(1, round(rate * data.records))
    if every["privacy.trust"] == "distributed":
        every["secure_sum.clients"] = data.clients
    raw: Keys = {}
    for path, value in every.items():
        *tables, key = path.split(".")
        table = raw
        for name in tables:
            inner = table.setdefault(name, {})
            assert isinstance(inner, dict)
            table = inner
        table[key] = value
    return plan_from(raw, where=row.name)


def trained(row: Row) -> int:
    """How many numbers of a row's network learn."""
    plan = runs(1, [row])[0].cell.plan
    return sum(p.numel() for p in build_for(plan).parameters() if p.requires_grad)


def report(found: Sequence[tuple[Run, Result | None]]) -> str:
    """The study as text: bytes are those of one client in one round, "?" is a run that isn't played."""
    heads = ("trained", "score", "epsilon", "minutes", "kB up", "kB down")
    lines = [f"{'':52s}" + "".join(f"{head:>9s}" for head in heads)]
    last = None
    for run, result in found:
        if run.row is not last:
            lines.append(f"{run.row.name:52s}{trained(run.row):9,}")
            last = run.row
        if result is None:
            lines.append(f"  {run.setting:59s}{'?':>9s}")
            continue
        rounds = run.clients * run.cell.plan.federation.rounds
        epsilon = "-" if result.epsilon is None else f"{result.epsilon:.2f}"
        sent = "".join(f"{'-' if n is None else f'{n / rounds / 1e3:,.0f}':>9s}" for n in (result.up, result.down))
        score = f"{100 * result.final['accuracy']:.2f}"
        more = f"  perplexity {result.final['perplexity']:.2f}" if "perplexity" in result.final else ""
        lines.append(f"  {run.setting:59s}{score:>9s}{epsilon:>9s}{result.seconds / 60:9.1f}{sent}{more}")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.zoo", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[""], help="rows and runs whose name holds one of these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/zoo"))
    parser.add_argument("--only-report", action="store_true", help="play nothing, tell what there is")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    asked = [run for run in runs(given.seed) if any(part in run.cell.name for part in given.only)]
    cells, results = [run.cell for run in asked], list[Result | None]()
    if given.only_report:
        results += played(cells, given.folder)
    else:
        results += play(cells, given.folder, processes=given.processes, say=print)
    text = report(list(zip(asked, results, strict=True)))
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
