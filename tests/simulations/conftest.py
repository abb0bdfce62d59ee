"""Small plans, and rounds of messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from client.books import create_simulated
from shared_models.example_form import ExampleForm
from shared_models.parameters import get_parameters, layout_of, to_arrays
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, PLAN_DIGEST, ROUND, RUN
from shared_models.registry import build
from shared_models.resolve import resolve
from simulations.local_grid import LocalGrid
from simulations.scenarios import find_plan

PlanMaker = Callable[..., Plan]


@pytest.fixture(scope="session")
def small_plan() -> PlanMaker:
    """A resolved plan: digits, a tiny network, three rounds, no privacy; overrides as after --set."""

    def make(*overrides: str) -> Plan:
        base = (
            "model.name=mlp",
            "model.options.hidden=[8]",
            "training.steps=3",
            "federation.rounds=3",
            "privacy.trust=none",
        )
        return resolve(find_plan("digits", (*base, *(text for text in overrides if text not in base))))

    return make


def config_of(plan: Plan, folder: Path) -> dict[str, str]:
    """What an app is told of a run: its plan, and a new ledger in a folder."""
    ledger = folder / "ledger.sqlite"
    create_simulated(ledger)
    return {"plan": write_plan(plan), "ledger": str(ledger)}


def train_messages(plan: Plan, grid: LocalGrid, clients: list[str], *, round_number: int = 1) -> list[Message]:
    """A round's train messages, all with the same content."""
    model = build(plan.model.name, plan.model.options, form=ExampleForm((1, 8, 8), 10), seed=plan.seed)
    layout = layout_of(model, plan.federation.wire)
    config = ConfigRecord({PLAN_DIGEST: plan.digest(), LAYOUT_DIGEST: layout.digest, ROUND: round_number, RUN: "r"})
    content = RecordDict({ARRAYS: to_arrays(get_parameters(model), layout), CONFIG: config})
    group = str(round_number)
    return [Message(content, grid.client_nodes[client], "train", group_id=group) for client in clients]
