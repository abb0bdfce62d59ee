"""What federation is worth: each client alone, and all data in one place, trained without privacy on the same network.

Only a simulation can know this, since it holds everybody's data.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from client.datasets.features import seen_records
from client.datasets.records import Records
from client.trainer import torch_threads, train_plain
from client.workplace import split_key
from server.cohort_grid import CohortGrid
from server.evaluation import TestData, evaluator
from server.rounds.plain import Contribution, moved
from server.strategies import make_strategy
from shared_models.parameters import Parameters, get_parameters, layout_of, set_parameters, to_arrays, unflat
from shared_models.plan import Plan
from shared_models.registry import build_for
from shared_models.schedule import learning_rate

_METRICS = ("auc", "accuracy", "f1")
_UNCLIPPED = 1e30
_ALONE = CohortGrid(cast("Grid", None), [0])  # a strategy may ask who is there, and sends nothing


def baselines(plan: Plan, test: TestData, federated: dict[str, float]) -> dict[str, Any]:
    """Rows of a table: the federated model beside each client alone and all data pooled.

    Each trains as long as one client does in the whole run; the pool, which holds more, for as many passes over its
    data as the clients make on average over theirs. Under joint steps each takes the run's own steps, on its own
    records alone, all of them, neither clipped nor noisy.
    """
    plain = _without_privacy(plan)
    clients = seen_records(plan, split_key=split_key(plan))
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
    if plan.is_joint:
        return _train_jointly(plan, records, test)
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


def _train_jointly(plan: Plan, records: Records, test: TestData) -> dict[str, float]:
    """The joint steps of a plan, with one owner's records for everybody's."""
    from privacy.dpsgd.gradient_sum import clipped_gradient_sum

    model, strategy = build_for(plan), make_strategy(plan)
    layout = layout_of(model, plan.federation.wire)
    parameters: Parameters = get_parameters(model)
    with torch_threads(plan.training.threads):
        for number in range(1, plan.federation.rounds + 1):
            arrays = to_arrays(parameters, layout)
            (message,) = strategy.configure(number, arrays, ConfigRecord({}), _ALONE)
            total = clipped_gradient_sum(
                model,
                [(records.x, records.y)],
                clipping_norm=_UNCLIPPED,
                engine=plan.training.dp_engine,
                precision=plan.training.precision,
            )
            rate = learning_rate(plan, number) / max(1, len(records))
            step = unflat((-rate * total).astype(np.float32), layout)
            towards = Contribution(moved(parameters, step), weight=1)
            parameters = strategy.aggregate(number, {"": message}, [towards])
            set_parameters(model, parameters)
    return evaluator(plan, build_for(plan), test)(parameters)


def _without_privacy(plan: Plan) -> Plan:
    if plan.is_joint:  # without privacy there are no joint steps: what is left out is clipping and noise
        return plan
    return plan.model_copy(update={"privacy": plan.privacy.model_copy(update={"trust": "none"})})
