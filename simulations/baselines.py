"""What federation is worth: each client alone, and all data in one place, trained without privacy on the same network.

Only a simulation can know this, since it holds everybody's data.
"""

from __future__ import annotations

from typing import Any

from client.datasets.partition import client_records
from client.datasets.records import Records
from client.trainer import torch_threads, train_plain
from client.workplace import split_key
from server.evaluation import TestData, evaluator
from shared_models.parameters import Parameters, get_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for

_METRICS = ("auc", "accuracy", "f1")


def baselines(plan: Plan, test: TestData, federated: dict[str, float]) -> dict[str, Any]:
    """Rows of a table: the federated model beside each client alone and all data pooled.

    Each trains as long as one client does in the whole run; the pool, which holds more, for as many passes over its
    data as the clients make on average over theirs.
    """
    plain = _without_privacy(plan)
    clients = client_records(plan.data, seed=plan.seed, split_key=split_key(plan))
    rows = [{"name": "federated", "metrics": federated}]
    pooled = pool(list(clients.values()))
    rows.append(
        {"name": "all data pooled", "metrics": _train(plain, "pooled", pooled, test, steps_factor=len(clients))}
    )
    for client, records in clients.items():
        rows.append({"name": f"{client} alone", "metrics": _train(plain, client, records, test, steps_factor=1)})
    return {"metrics": list(_METRICS), "rows": rows}


def pool(parts: list[Records]) -> Records:
    """All records in one place."""
    import torch

    return Records(x=torch.cat([part.x for part in parts]), y=torch.cat([part.y for part in parts]))


def _train(plan: Plan, name: str, records: Records, test: TestData, *, steps_factor: int) -> dict[str, float]:
    steps = plan.training.local_steps * steps_factor
    longer = plan.model_copy(update={"training": plan.training.model_copy(update={"steps": steps})})
    if plan.training.epochs is not None:
        longer = plan
    model = build_for(plan)
    parameters: Parameters = get_parameters(model)
    with torch_threads(plan.training.threads):
        for number in range(1, plan.federation.rounds + 1):
            change, _ = train_plain(model, parameters, records, longer, round_number=number, client=name)
            parameters = {key: value + change[key] for key, value in parameters.items()}
    return evaluator(plan, build_for(plan), test)(parameters)


def _without_privacy(plan: Plan) -> Plan:
    return plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"trust": "none"})})
