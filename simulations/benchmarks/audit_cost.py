"""A run with canaries beside the run that it audits: what an audit in the run itself costs.

    python -m simulations.benchmarks.audit_cost

Pairs of runs of one plan take turns, plain and with the canaries that `veil audit` would plant, wrong labels among
them, and an auditor who listens and scores them at the end. What isn't in it: bounds from the scores, which are a few
seconds whatever the run, and rounds that are played many times by themselves.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from privacy.audit.finding import FALSE_ALARMS
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.audit.audit import Options, claim_of, enough, plantings_of
from simulations.audit.canary_run import play_with_canaries
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

SCENARIOS = ("digits", "digits-secure", "digits-central", "fashion")
_INLINE = Settings(engine="inline")
_BOUNDS = 7  # that share an audit's false alarms
_SECRET = bytes(32)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of an audit.

    Attributes:
        canaries: planted gradients, or clients.
        mislabelled: records with wrong labels.
        plain, audited: processor seconds of each run.
        wall: ratio of each pair's times by the clock.
    """

    canaries: int
    mislabelled: int
    plain: tuple[float, ...]
    audited: tuple[float, ...]
    wall: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios, of processor time."""
        return median(b / a for a, b in zip(self.plain, self.audited, strict=True))


def measure(plan: Plan, pairs: int, options: Options | None = None) -> Cost:
    """Play a resolved plan plain and audited in turns.

    Args:
        plan: private.
        pairs: how many; one more is played first and not counted.
        options: of the audit; None for as many canaries as can contradict the claim.
    """
    if options is None:
        options = Options(canaries=enough(claim_of(plan), alpha=FALSE_ALARMS / _BOUNDS))
    plantings = plantings_of(plan, options, _SECRET)
    place = Path(tempfile.mkdtemp(prefix="veil-bench-"))
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    try:
        for number in range(1 + pairs):
            before = _now()
            start_run(plan, place / f"plain-{number}", _INLINE)
            between = _now()
            play_with_canaries(plan, plantings, place / f"audited-{number}", _INLINE)
            after = _now()
            times.append((_passed(before, between), _passed(between, after)))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    counted = times[1:]
    return Cost(
        canaries=sum(one.count for one in plantings if one.kind != "mislabelled"),
        mislabelled=sum(one.count for one in plantings if one.kind == "mislabelled"),
        plain=tuple(plain[0] for plain, _ in counted),
        audited=tuple(audited[0] for _, audited in counted),
        wall=tuple(audited[1] / plain[1] for plain, audited in counted),
    )


def _now() -> tuple[float, float]:
    return process_time(), perf_counter()


def _passed(before: tuple[float, float], after: tuple[float, float]) -> tuple[float, float]:
    return after[0] - before[0], after[1] - before[1]


def line(name: str, cost: Cost) -> str:
    """Of the table."""
    return (
        f"{name:16s}{cost.canaries:10,d}{cost.mislabelled:14d}{median(cost.plain):12.1f}{median(cost.audited):12.1f}"
        f"{cost.ratio:8.2f}{median(cost.wall):8.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.audit_cost", description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    print(
        f"{'':16s}{'canaries':>10s}{'wrong labels':>14s}{'plain, s':>12s}{'audited, s':>12s}{'ratio':>8s}{'clock':>8s}"
    )
    for name in given.scenarios:
        plan = resolve(find_plan(name, given.changes))
        print(line(name, measure(plan, given.pairs)), flush=True)


if __name__ == "__main__":
    main()
