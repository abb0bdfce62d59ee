"""A strategy sees the round's cohort and nobody else."""

from __future__ import annotations

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.run import Run

from server.cohort_grid import CohortGrid
from shared_models.parameters import to_arrays
from tests.server.conftest import LAYOUT, START, FakeGrid, learns


class Recorder(FakeGrid):
    """Also takes single messages."""

    def push_messages(self, messages: list[Message]) -> list[str]:  # type: ignore[override]
        return [f"pushed {message.metadata.dst_node_id}" for message in messages]

    def pull_messages(self, message_ids: list[str]) -> list[Message]:  # type: ignore[override]
        return [Message(RecordDict(), int(message_id), "train") for message_id in message_ids]


def test_only_the_cohort_is_listed() -> None:
    grid = FakeGrid("abcdef", learns)
    assert list(CohortGrid(grid, [2, 5]).get_node_ids()) == [2, 5]
    assert list(CohortGrid(grid, []).get_node_ids()) == []


def test_flowers_own_sampling_finds_the_cohort_and_asks_each_once() -> None:
    grid = CohortGrid(FakeGrid("abcdef", learns), [6, 2, 3])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    messages = list(strategy.configure_train(1, to_arrays(START, LAYOUT), ConfigRecord(), grid))
    assert sorted(message.metadata.dst_node_id for message in messages) == [2, 3, 6]


def test_all_else_is_the_grids_own() -> None:
    inner = Recorder("ab", learns)
    grid = CohortGrid(inner, [1])
    run = Run.create_empty(9)
    grid.set_run(run)
    assert inner.run is run
    assert grid.run is run
    message = grid.create_message(RecordDict(), "train", 2, "5", ttl=60.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (2, "5", 60.0)
    assert list(grid.push_messages([message])) == ["pushed 2"]
    assert [m.metadata.dst_node_id for m in grid.pull_messages(["2"])] == [2]
    question = Message(RecordDict(), 1, "query.identify")
    assert [m.metadata.src_node_id for m in grid.send_and_receive([question], timeout=3.0)] == [1]
    assert inner.timeouts == [3.0]
