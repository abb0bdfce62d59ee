"""How good each virtual client's own model is, on what that client holds out.

Only a simulation can know this, which holds everybody's data and models: nothing of it was released.
"""

from __future__ import annotations

import math
from typing import Any

from client.evaluator import count_correct
from client.personal import personal_model
from client.trainer import torch_threads
from client.workplace import workplace
from server.federation import Outcome
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.plan_personal import has_own_head
from simulations.local_grid import LocalGrid


def judge_personal(plan: Plan, grid: LocalGrid, outcome: Outcome) -> dict[str, Any] | None:
    """The `personal` part of a summary; None in a plan without personal models.

    Accuracies are parts of each client's own held-out records: of its own model, and of the shared one where that is a
    whole model. Means are over the clients that hold out something, each counting the same.
    """
    if plan.personal is None:
        return None
    place, rows = workplace(write_plan(plan)), []
    with torch_threads(plan.training.threads):
        for client, state in grid.states.items():
            records = place.held_out(client)

            def accuracy(model: Any, records: Any = records) -> float | None:
                right, total = count_correct(place.model, model, records, batch_size=plan.evaluation.batch_size)
                return right / total if total else None

            own = personal_model(state, place, outcome.state.run, outcome.parameters)
            shared = None if has_own_head(plan) else accuracy(outcome.parameters)
            rows.append({"id": client, "examples": len(records), "accuracy": accuracy(own), "shared_accuracy": shared})
    return {
        "kind": plan.personal.kind,
        "released": False,
        "accuracy": _mean([row["accuracy"] for row in rows]),
        "shared_accuracy": _mean([row["shared_accuracy"] for row in rows]),
        "clients": rows,
    }


def _mean(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
