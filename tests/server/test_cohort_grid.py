"""A strategy sees the round's cohort and nobody else."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run

from security.errors import RunError
from server.cohort_grid import CohortGrid
from shared_models.parameters import to_arrays
from tests.server.conftest import LAYOUT, START, FakeGrid, learns


def test_only_the_cohort_is_listed() -> None:
    grid = FakeGrid("abcdef", learns)
    assert list(CohortGrid(grid, [2, 5]).get_node_ids()) == [2, 5]
    assert list(CohortGrid(grid, []).get_node_ids()) == []


def test_flowers_own_sampling_finds_the_cohort_and_asks_each_once() -> None:
    grid = CohortGrid(FakeGrid("abcdef", learns), [6, 2, 3])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    messages = list(strategy.configure_train(1, to_arrays(START, LAYOUT), ConfigRecord(), grid))
    assert sorted(message.metadata.dst_node_id for message in messages) == [2, 3, 6]


def test_run_and_messages_are_the_grids_own() -> None:
    inner = FakeGrid("ab", learns)
    grid = CohortGrid(inner, [1])
    run = Run.create_empty(9)
    grid.set_run(run)
    assert inner.run is run
    assert grid.run is run
    message = grid.create_message(RecordDict(), "train", 2, "5", ttl=60.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (2, "5", 60.0)


def test_a_strategy_can_not_send_by_itself() -> None:
    """Its clients would train and be charged in rounds that the server's books don't count."""
    grid = CohortGrid(FakeGrid("ab", learns), [1])
    message = grid.create_message(RecordDict(), "train", 1, "5")
    with pytest.raises(RunError, match="may not send messages by itself"):
        grid.send_and_receive([message])
    with pytest.raises(RunError):
        grid.push_messages([message])
    with pytest.raises(RunError):
        grid.pull_messages(["1"])
