"""Where canaries lie: where gradients are small, by records alone; and gradients are what one by one they are."""

from __future__ import annotations

import pytest
import torch

from client.datasets.features import seen_records
from client.datasets.records import Records
from client.workplace import split_key
from shared_models.loss import loss_of
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.resolve import resolve
from simulations.audit import gradients as module
from simulations.audit.canaries import quiet_coordinates
from simulations.audit.gradients import gradients_of
from simulations.scenarios import find_plan


def plan_of(*overrides: str) -> Plan:
    return resolve(find_plan("digits", ("model.name=mlp", "model.options.hidden=[8]", *overrides)))


def test_canaries_lie_where_clipped_gradients_are_smallest_in_the_layouts_order() -> None:
    plan = plan_of("data.partition={ kind = 'iid', clients = 2 }")
    model, squared = build_for(plan).train(), torch.zeros(610, dtype=torch.float64)
    for own in seen_records(plan, split_key=split_key(plan)).values():
        for number in range(16):
            model.zero_grad()
            loss_of(plan)(model(own.x[number : number + 1]), own.y[number : number + 1]).sum().backward()
            alone = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
            squared += (alone * min(1.0, plan.privacy.clipping_norm / float(alone.norm()))).square()
    order = torch.tensor(quiet_coordinates(plan, 610))
    assert sorted(order.tolist()) == list(range(610))
    assert float(squared[order].diff().min()) > -1e-5 * float(squared.max()), "in rising order"
    assert float(squared[order[:100]].sum()) < 0.01 * float(squared.sum())
    assert quiet_coordinates(plan, 100) == tuple(order[:100].tolist())


def test_all_gradients_are_looked_at_in_parts_that_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_of()
    records = Records(x=torch.randn(50, 1, 8, 8), y=torch.arange(50) % 10)
    model = build_for(plan).train()
    ((_, whole),) = gradients_of(plan, model, records)
    monkeypatch.setattr(module, "_VALUES", 610 * 7)
    parts = list(gradients_of(plan, model, records))
    assert [part.stop - part.start for part, _ in parts] == [7] * 7 + [1]
    torch.testing.assert_close(torch.cat([rows for _, rows in parts]), whole)


def test_large_gradients_count_by_what_clipping_leaves_of_them() -> None:
    """Wherever clipping binds, only directions matter: another norm changes no order."""
    assert quiet_coordinates(plan_of("privacy.clipping_norm=1e-3"), 610) == quiet_coordinates(
        plan_of("privacy.clipping_norm=1e-4"), 610
    )
