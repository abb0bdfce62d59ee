"""The same plan with several seeds: mean and deviation instead of one lucky figure."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from security.errors import UsageError
from server.run_folder import write_atomically
from shared_models.plan import Plan
from simulations.run import Settings, failure, new_folder, start_run


@dataclass(frozen=True)
class Repeated:
    """Runs that differ in their seed alone.

    Attributes:
        path: folder that holds one run's folder a seed, and `repeat.json`.
        seeds: the seeds, in order.
        values: each metric's value for each seed.
        epsilons: largest epsilon of each run; None without privacy. The same data was used each time.
        stopped: why each run ended early, if it did.
    """

    path: Path
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    epsilons: tuple[float | None, ...]
    stopped: tuple[str | None, ...]

    def mean(self, metric: str) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values[metric])

    def deviation(self, metric: str) -> float:
        """Sample standard deviation over the seeds."""
        return statistics.stdev(self.values[metric])


def repeat_run(plan: Plan, times: int, out: Path | None, settings: Settings) -> Repeated:
    """Run a plan with the seeds `plan.seed`, `plan.seed + 1`, ...

    Raises:
        UsageError, RunError: as `start_run`; the runs before it are kept.
    """
    if times < 2:
        raise UsageError(f"repeat: {times} runs have no deviation; give 2 or more")
    path = out or new_folder(plan.name)
    seeds = tuple(range(plan.seed, plan.seed + times))
    finals: list[dict[str, float]] = []
    epsilons: list[float | None] = []
    stops: list[str | None] = []
    for seed in seeds:
        again = plan.model_copy(update={"seed": seed})
        called = f"{path.name}-seed-{seed}"
        folder, outcome = start_run(again, path / f"seed-{seed}", replace(settings, called=called))
        if outcome.stopped == "failed":
            raise failure(folder, outcome)
        finals.append(outcome.state.evaluation or {})
        epsilons.append(folder.read_summary()["privacy"].get("epsilon_max"))
        stops.append(outcome.stopped)
    common = [name for name in finals[0] if all(name in final for final in finals)]
    values = {name: tuple(final[name] for final in finals) for name in common}
    repeated = Repeated(path, seeds, values, tuple(epsilons), tuple(stops))
    table: dict[str, Any] = {
        "seeds": list(seeds),
        "epsilon_max": epsilons,
        "stopped": stops,
        "metrics": {
            name: {"mean": repeated.mean(name), "deviation": repeated.deviation(name), "values": list(values)}
            for name, values in repeated.values.items()
        },
    }
    write_atomically(path / "repeat.json", (json.dumps(table, indent=2) + "\n").encode())
    return repeated
