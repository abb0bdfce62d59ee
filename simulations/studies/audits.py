"""Audits of digits and fashion in every mode: what is claimed, what an adversary found, and what it could have found.

    python -m simulations.studies.audits --out docs/evidence/audits.txt

Each row is `veil audit` of a scenario, in which settings are changed where its line says so. Finished audits are kept
and not played again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.audit.finding import ESTIMATES, FALSE_ALARMS
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.audit.audit import Options, as_json_of, audit
from simulations.kept import keep, read_kept
from simulations.run import Settings
from simulations.scenarios import find_plan
from simulations.studies.study import side_by_side

JOINT = (
    "data.partition={ kind = 'iid', clients = 10 }",
    "privacy.trust=distributed",
    "secure_sum.masks=false",
    "federation.strategy=fedavgm",
    "training.momentum=0",
    "training.steps=",
    "federation.rounds=60",
)
UNMASKED = ("secure_sum.masks=false",)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An audit of the study.

    Attributes:
        name: data and mode.
        scenario: that is audited.
        changes: to it, as after --set.
        rounds: times that one round is played with a canary, and without.
        shadows: shadow models.
    """

    name: str
    scenario: str
    changes: tuple[str, ...] = ()
    rounds: int = 1000
    shadows: int = 0

    def plan(self) -> Plan:
        """That is audited, resolved."""
        return resolve(find_plan(self.scenario, self.changes))


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What came of a row.

    Attributes:
        name: of the row.
        digest: of the plan.
        audit: as in audit.json.
    """

    name: str
    digest: str
    audit: dict[str, Any]


ROWS: Sequence[Row] = (
    Row(name="digits, local, records", scenario="digits", shadows=16),
    Row(name="digits, distributed, records", scenario="digits", changes=JOINT),
    Row(name="digits, distributed, clients", scenario="digits-secure"),
    Row(name="digits, central, clients", scenario="digits-central"),
    Row(
        name="digits, distributed, 500 clients, epsilon 3",
        scenario="digits-secure",
        changes=(*UNMASKED, "data.partition.clients=500", "privacy.epsilon=3"),
        rounds=100,
    ),
    Row(
        name="digits, central, 700 clients, epsilon 3",
        scenario="digits-central",
        changes=("data.partition.clients=700", "privacy.epsilon=3"),
    ),
    Row(name="fashion, local, records", scenario="fashion"),
    Row(name="fashion, distributed, records", scenario="fashion-secure", changes=UNMASKED, rounds=400),
    Row(name="fashion, central, clients", scenario="fashion-clients"),
)


def play(rows: Sequence[Row], folder: Path, *, processes: int) -> list[Kept]:
    """Audit what isn't audited yet; results in the order of the rows.

    Args:
        rows: what is asked for.
        folder: where results are kept.
        processes: how many audits at once.

    Raises:
        UsageError, RunError: an audit can't be played; those before it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.jsonl"
    known = {(one.name, one.digest): one for one in read_kept(file, Kept)}
    keys = [(row.name, row.plan().digest()) for row in rows]
    missing = [
        (row.name, row.scenario, row.changes, row.rounds, row.shadows)
        for row, key in zip(rows, keys, strict=True)
        if key not in known
    ]
    for found in side_by_side(_audit, missing, processes):
        known[found.name, found.digest] = found
        keep(file, found)
        print(_row(found), flush=True)
    return [known[key] for key in keys]


def _audit(name: str, scenario: str, changes: tuple[str, ...], rounds: int, shadows: int) -> Kept:
    plan = Row(name=name, scenario=scenario, changes=changes).plan()
    options = Options(rounds=rounds, shadows=shadows)
    place = Path(tempfile.mkdtemp(prefix="veil-study-", dir=os.environ.get("TMPDIR")))
    try:
        found = audit(plan, place / "run", Settings(engine="inline"), options, say=lambda _: None)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return Kept(name=name, digest=plan.digest(), audit=as_json_of(found))


_HEADS = f"{'looked for':14s}{'where':12s}{'method':15s}{'claimed':>8s}{'found':>8s}{'power':>7s}{'right':>13s}"


def report(kept: Sequence[Kept]) -> str:
    """The study as text."""
    findings = [one for row in kept for one in row.audit["findings"]]
    number = {verdict: sum(one["verdict"] == verdict for one in findings) for verdict in ("consistent", "broken")}
    return (
        f"{_HEADS}\n\n"
        + "\n".join(_row(one) for one in kept)
        + f"\n{number['consistent']} consistent, {number['broken']} broken, "
        f"{len(findings) - sum(number.values())} uninformative\n"
        f"found: lower bounds of epsilon; those of an audit hold together in all but {FALSE_ALARMS:.1%} of audits\n"
        "power: the most that could have been found; below the claim an audit is uninformative\n"
        "~: an estimate, which proves nothing\n"
    )


def _row(kept: Kept) -> str:
    lines = [kept.name]
    for one in kept.audit["findings"]:
        about = "~" if one["method"] in ESTIMATES else ""
        right = f"{one['correct']}/{one['guesses']}" if one["guesses"] else ""
        found = f"{about}{one['epsilon']:.2f}"
        lines.append(
            f"  {one['looked_for']:12s}{one['way']:12s}{one['method']:15s}{one['claimed']:8.2f}{found:>8s}"
            f"{one['power']:7.2f}{right:>13s}  {one['verdict']}"
        )
    if shadows := kept.audit["membership"]:
        lines.append(
            f"  membership by {shadows['shadow_models']} shadow models, {shadows['records']} records: area "
            f"{shadows['area']:.3f}, finds {shadows['found_at_1_percent']:.1%} at 1 % false alarms"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.audits", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[""], help="rows whose name holds one of these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/audits"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    asked = [row for row in ROWS if any(part in row.name for part in given.only)]
    text = report(play(asked, given.folder, processes=given.processes))
    print(text)
    if given.out is not None:
        given.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
