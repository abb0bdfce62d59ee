"""Repeating a run over seeds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from security.errors import UsageError
from simulations.repeat import repeat_run
from simulations.run import Settings
from tests.simulations.conftest import PlanMaker


def test_mean_and_deviation_are_over_the_seeds_and_each_run_is_kept(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("federation.rounds=1")
    repeated = repeat_run(plan, 3, tmp_path / "all", Settings(engine="inline"))
    assert repeated.seeds == (plan.seed, plan.seed + 1, plan.seed + 2)
    finals = [
        json.loads((tmp_path / "all" / f"seed-{seed}" / "summary.json").read_text())["final"]["accuracy"]
        for seed in repeated.seeds
    ]
    assert len(set(finals)) > 1
    assert repeated.mean("accuracy") == statistics.fmean(finals)
    table = json.loads((tmp_path / "all" / "repeat.json").read_text())
    assert table["metrics"]["accuracy"]["deviation"] == statistics.stdev(finals)


def test_one_run_has_no_deviation(small_plan: PlanMaker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="repeat: 1 runs have no deviation; give 2 or more"):
        repeat_run(small_plan(), 1, tmp_path / "all", Settings(engine="inline"))
    assert not (tmp_path / "all").exists()
