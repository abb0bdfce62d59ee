"""The study of the hospitals, on one split and few steps: its runs are what its table says they are."""

from __future__ import annotations

from pathlib import Path

from shared_models.plan_file import plan_from, write_plan
from simulations.studies.hospitals import POOLED, cells, name_of, report
from simulations.studies.study import Cell, play


def shortened(cell: Cell) -> Cell:
    raw = cell.plan.model_dump(mode="json", exclude_none=True)
    raw["federation"]["rounds"] = raw["evaluation"]["every"] = 3
    return Cell(name=cell.name, plan=plan_from(raw, where="test"), seed=cell.seed)


def test_every_row_is_played_and_told(tmp_path: Path) -> None:
    results = play([shortened(cell) for cell in cells([1, 2])], tmp_path)
    spent = {one.name: one.epsilon for one in results}
    assert spent[name_of("joint", 1)] <= 1.0
    assert spent[name_of("local", 3)] <= 3.0
    assert POOLED in results[0].baselines
    table = report(results)
    assert "joint, epsilon 1 " in table
    assert "switzerland alone, no privacy" in table
    assert "mean AUC over 2 splits" in table


def test_joint_and_local_runs_differ_in_who_adds_the_noise_alone() -> None:
    rows = {cell.name: cell.plan for cell in cells([1])}
    joint, local = rows[name_of("joint", 3)], rows[name_of("local", 3)]
    assert (joint.privacy.trust, local.privacy.trust) == ("distributed", "local")
    assert joint.privacy.epsilon == local.privacy.epsilon == 3.0
    assert joint.federation == local.federation
    assert joint.model == local.model
    assert not joint.secure.masks
    assert cells([1], masks=True)[-2].plan.secure.masks
    assert write_plan(joint) != write_plan(local)
