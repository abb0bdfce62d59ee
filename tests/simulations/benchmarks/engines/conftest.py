"""Works in small, and their arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from simulations.benchmarks.engines.data import made
from simulations.benchmarks.engines.playing import Task
from simulations.benchmarks.engines.works import WORKS, Work, scaled

TaskMaker = Callable[..., Task]


def small(name: str) -> Work:
    """Six users, of whom four take part in a round."""
    return scaled(WORKS[name], users=6, cohort=4, records=12)


@pytest.fixture(scope="session")
def task_of(tmp_path_factory: pytest.TempPathFactory) -> TaskMaker:
    """A task over a small work's arrays, by the names of work and contender."""
    folder = tmp_path_factory.mktemp("arrays")

    def make(contender: str, work: str, rounds: int = 2, **others: object) -> Task:
        path: Path = made(small(work), folder)
        values: dict[str, object] = {"processes": 2, **others}
        return Task(contender=contender, work=small(work), data=str(path), rounds=rounds, **values)  # type: ignore[arg-type]

    return make
