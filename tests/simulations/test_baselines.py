"""Baselines: alone and pooled."""

from __future__ import annotations

import torch

from client.datasets.partition import client_records
from client.datasets.registry import load
from client.workplace import split_key
from server.evaluation import TestData
from simulations.baselines import baselines, pool
from tests.simulations.conftest import PlanMaker


def test_the_pool_holds_every_clients_records() -> None:
    from simulations.scenarios import find_plan

    plan = find_plan("hospitals")
    clients = client_records(plan.data, seed=plan.seed, split_key=split_key(plan))
    pooled = pool(list(clients.values()))
    assert len(pooled) == sum(len(records) for records in clients.values())
    assert torch.equal(pooled.y.bincount(), sum(records.y.bincount() for records in clients.values()))


def test_there_is_a_row_for_the_federation_the_pool_and_each_client(small_plan: PlanMaker) -> None:
    plan = small_plan("federation.rounds=1", "data.partition.clients=3")
    test = load(plan.data, split_key=split_key(plan)).test
    table = baselines(plan, TestData(test.x, test.y), {"accuracy": 0.5})
    assert [row["name"] for row in table["rows"]] == ["federated", "all data pooled", "0 alone", "1 alone", "2 alone"]
    assert table["rows"][0]["metrics"] == {"accuracy": 0.5}
    assert len({row["metrics"]["loss"] for row in table["rows"][1:]}) == 4
