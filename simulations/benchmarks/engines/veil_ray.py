"""Veil on Ray, as `veil simulate` starts it: actors first, and what the run needs is imported meanwhile."""

from __future__ import annotations

from simulations.benchmarks.engines.playing import Played, Task
from simulations.early_ray import early_workers


def play(task: Task) -> Played:
    """As `veil.play`."""
    with early_workers(workers=task.processes) as actors:
        from simulations.benchmarks.engines import veil

        return veil.play(task, actors)
