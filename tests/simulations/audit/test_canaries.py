"""Where canaries lie: chosen by what is quiet at the start, in every network that the plan's run would train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shared_models import own
from shared_models.loss import loss_of
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.audit import gradients as module
from simulations.audit.audit import Options, audit
from simulations.audit.canaries import _own_records, layout_of_plan, planting_for, quiet_coordinates
from simulations.audit.gradients import gradients_of
from simulations.run import Settings
from simulations.scenarios import find_plan

SMALL = ("model.name=mlp", "model.options.hidden=[8]")

NORMALISED = """
from torch import nn


def build(form):
    norm = nn.BatchNorm1d(8, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), norm, nn.Tanh(), nn.Linear(8, form.classes))
"""


def plan_of(*overrides: str, scenario: str = "digits") -> Plan:
    return resolve(find_plan(scenario, (*SMALL, *overrides)))


def test_quiet_is_where_clipped_gradients_of_records_are_smallest() -> None:
    """By autograd, one record after the other."""
    plan = plan_of()
    model, loss, total = build_for(plan), loss_of(plan), torch.zeros(layout_of_plan(plan).size, dtype=torch.float64)
    own_records = _own_records(plan)
    for client in list(own_records)[:16]:
        some = own_records[client].part(slice(16))
        for x, y in zip(torch.split(some.x, 1), torch.split(some.y, 1), strict=True):
            found = torch.autograd.grad(loss(model(x), y), list(model.parameters()))
            row = torch.cat([one.flatten() for one in found])
            total += (row * min(1.0, plan.privacy.clipping_norm / float(row.norm()))).double().square()
    quiet = np.array(quiet_coordinates(plan, 200))
    assert len(set(quiet)) == 200
    for start, end, part in ((0, 512, 168), (512, 520, 2), (520, 600, 27), (600, 610, 3)):  # of each parameter a third
        mine = quiet[(quiet >= start) & (quiet < end)]
        loud = np.setdiff1d(np.arange(start, end), mine)
        assert len(mine) == part
        assert float(total[mine].max()) <= float(total[loud].min()) * (1 + 1e-4)


@pytest.mark.parametrize("count", [0, 1, 7, 300, 609, 610])
def test_there_are_as_many_as_were_asked_for(count: int) -> None:
    found = quiet_coordinates(plan_of(), count)
    assert len(set(found)) == len(found) == count
    assert set(found) <= set(range(610))


@pytest.mark.parametrize("overrides", [(), ("model.options.dropout=0.5",)])
def test_coordinates_follow_from_plan_and_records_and_not_from_coins(overrides: tuple[str, ...]) -> None:
    plan = plan_of(*overrides)
    chosen = {planting_for(plan, "gradients", 50, ("0",), bytes([number] * 32)).coordinates for number in range(3)}
    assert len(chosen) == 1
    torch.rand(1)  # nor from what others draw
    assert planting_for(plan, "gradients", 50, ("0",)).coordinates in chosen


def test_a_gradient_that_is_not_finite_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    wanted = quiet_coordinates(plan, 50)

    def broken(*given: object) -> object:
        for part, rows in gradients_of(*given):  # type: ignore[arg-type]
            yield part, torch.cat([rows, torch.full_like(rows[:1], torch.nan), torch.full_like(rows[:1], torch.inf)])

    monkeypatch.setattr("simulations.audit.canaries.gradients_of", broken)
    assert quiet_coordinates(plan, 50) == wanted


def test_gradients_are_the_same_however_few_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    records = next(iter(_own_records(plan).values())).part(slice(10))
    model = build_for(plan).train()
    whole = torch.cat([rows for _, rows in gradients_of(plan, model, records)])
    monkeypatch.setattr(module, "_VALUES", 3 * whole.shape[1])
    parts = [rows for _, rows in gradients_of(plan, model, records)]
    assert [len(rows) for rows in parts] == [3, 3, 3, 1]
    assert torch.allclose(torch.cat(parts), whole, rtol=1e-5, atol=1e-7)


def test_a_network_whose_records_have_no_gradients_of_their_own_is_audited_where_clients_are_the_unit(
    tmp_path: Path,
) -> None:
    """A run trains it plainly and clips what comes of it; so must the choice of coordinates."""
    path = tmp_path / "mine.py"
    path.write_text(NORMALISED)
    models = {"mine": f"{path}:build"}
    own.bind(models)
    try:
        overrides = ("model.name=mine", "model.options={}", "federation.rounds=1", "evaluation.where=none")
        plan = resolve(find_plan("digits-central", overrides))
        found = audit(
            plan, tmp_path / "audit", Settings(engine="inline", models=models), Options(canaries=20), lambda _: None
        )
    finally:
        own.bind({})
    assert [one.looked_for for one in found.findings][:2] == ["clients", "clients"]
