"""Four hospitals: what joint steps over secure sums lose against all data in one place, without privacy.

    python -m simulations.studies.hospitals --splits 20 --out docs/evidence/hospitals.txt

Each split into training and test records is another seed. On each: joint DP-SGD and local DP at two epsilons, and
without privacy all data pooled and each hospital alone, the same linear model in as many steps and in eight times as
many. Differences are paired by split, and to the better of the two pools. Learning rates were chosen on other splits
(seeds 100 to 111) of the same records.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from shared_models.plan import Plan
from simulations.scenarios import find_plan
from simulations.studies.study import Cell, Interval, Result, interval, paired, play, values_of

METRIC = "auc"
EPSILONS = (1.0, 3.0)
POOLED = "all data pooled"

_REFERENCES = {"20 steps": ("federation.rounds=20",), "160 steps": ("federation.rounds=160", "evaluation.every=160")}
_RATES = {"joint": {1.0: 0.5, 3.0: 1.0}, "local": {1.0: 0.25, 3.0: 0.5}}


def cells(seeds: Sequence[int], *, masks: bool = False) -> list[Cell]:
    """The study's runs: each kind with each seed.

    Args:
        seeds: of the splits.
        masks: whether sums are made by the whole protocol; the figures are of the same kind without.
    """
    summed = f"secure_sum.masks={'true' if masks else 'false'}"
    # Of these only the baselines count.
    plans = {name: _plan(summed, "evaluation.baselines=true", *steps) for name, steps in _REFERENCES.items()}
    for epsilon in EPSILONS:
        rates = {kind: f"training.learning_rate={rate[epsilon]}" for kind, rate in _RATES.items()}
        target = f"privacy.epsilon={epsilon}"
        plans[name_of("joint", epsilon)] = _plan(target, rates["joint"], summed)
        plans[name_of("local", epsilon)] = _plan(
            target, rates["local"], "privacy.trust=local", "secure_sum=", "training.steps=1"
        )
    return [Cell(name=name, plan=plan, seed=seed) for name, plan in plans.items() for seed in seeds]


def name_of(kind: str, epsilon: float) -> str:
    """Of a row."""
    return f"{kind}, epsilon {epsilon:g}"


def _plan(*overrides: str) -> Plan:
    return find_plan("hospitals-secure", ("evaluation.baselines=false", *overrides))


def report(results: Sequence[Result]) -> str:
    """The study as text."""
    pools = {name: _baseline(results, name, POOLED) for name in _REFERENCES}
    best = max(pools, key=lambda name: interval(list(pools[name].values())).mean)
    lines = [
        f"{f'mean AUC over {len(pools[best])} splits':44s}{'AUC':>7s}   "
        f"{f'lost against the pool, {best} (95 %)':38s}{'epsilon':>8s}{'seconds':>9s}"
    ]
    for name, pool in pools.items():
        lines.append(_row(f"pooled, no privacy, {name}", pool, pools[best]))
    for name in dict.fromkeys(one.name for one in results if one.name not in _REFERENCES):
        rows = [one for one in results if one.name == name]
        spent, seconds = max(one.epsilon or 0.0 for one in rows), interval([one.seconds for one in rows]).mean
        lines.append(f"{_row(name, values_of(rows, name, METRIC), pools[best]):92s}{spent:8.4f}{seconds:9.1f}")
    for hospital in next(one.baselines for one in results if one.name == best):
        if hospital not in ("federated", POOLED):
            lines.append(_row(f"{hospital}, no privacy, {best}", _baseline(results, best, hospital), pools[best]))
    return "\n".join(lines) + "\n"


def _baseline(results: Sequence[Result], name: str, row: str) -> dict[int, float]:
    return {one.seed: one.baselines[row][METRIC] for one in results if one.name == name}


def _row(name: str, values: dict[int, float], pool: dict[int, float]) -> str:
    lost = "" if values is pool else _shown(paired(pool, values))
    return f"{name:44s}{interval(list(values.values())).mean:7.4f}   {lost}".rstrip()


def _shown(difference: Interval) -> str:
    return f"{difference.mean:+.4f}  [{difference.low:+.4f}, {difference.high:+.4f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.hospitals", description=__doc__)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--masks", action="store_true", help="play the whole protocol of secure sums")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/hospitals"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    seeds = range(given.first_seed, given.first_seed + given.splits)
    results = play(cells(seeds, masks=given.masks), given.folder, processes=given.processes, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
