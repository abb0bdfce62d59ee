"""The Ray grid: streams replies, survives dead actors, keeps clients' states."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("ray")

import ray
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from security.errors import RunError
from shared_models.faults import Fault
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CLIENT_ID, CONFIG, IDENTIFY, PLAN_DIGEST
from simulations.inline_grid import InlineGrid
from simulations.ray_grid import RayGrid
from simulations.ray_workers import RayOptions
from tests.simulations.conftest import PlanMaker, config_of, train_messages
from tests.simulations.faulty_app import SECRET
from tests.simulations.ledger_reading import committed, reserved

pytestmark = pytest.mark.ray
CLIENTS = [str(i) for i in range(10)]
FAULTY = "tests.simulations.faulty_app:app"


def arrays_of(reply: Message) -> dict[str, bytes]:
    record: ArrayRecord = reply.content.array_records[ARRAYS]
    return {name: array.data for name, array in record.items()}


def test_replies_are_those_of_the_inline_grid_bit_for_bit(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = small_plan()
    (tmp_path / "inline").mkdir()
    inline = InlineGrid(CLIENTS, config=config_of(plan, tmp_path / "inline"))
    expected = {r.metadata.src_node_id: r for r in inline.stream(train_messages(plan, inline, CLIENTS))}
    grid = RayGrid(CLIENTS, config=config_of(plan, tmp_path), options=RayOptions(workers=2))
    found = {r.metadata.src_node_id: r for r in grid.stream(train_messages(plan, grid, CLIENTS))}
    grid.close()
    assert found.keys() == expected.keys()
    assert all(arrays_of(found[node]) == arrays_of(expected[node]) for node in expected)


def test_a_model_is_in_the_object_store_once_whatever_each_client_is_told_beside_it(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a secure sum. What a client reads is what was sent, in the order in which it digests it."""
    plan = small_plan()
    grid = RayGrid(CLIENTS, config=config_of(plan, tmp_path), options=RayOptions(workers=2))
    common = train_messages(plan, grid, CLIENTS)
    expected = {reply.metadata.src_node_id: arrays_of(reply) for reply in grid.stream(common, timeout=None)}
    stored: list[object] = []
    put = ray.put
    monkeypatch.setattr(ray, "put", lambda value: stored.append(value) or put(value))
    own = []
    for message in train_messages(plan, grid, CLIENTS):
        config = ConfigRecord({**common[0].content.config_records[CONFIG], "told": message.metadata.dst_node_id})
        content = RecordDict({ARRAYS: common[0].content[ARRAYS], CONFIG: config})
        own.append(Message(content, message.metadata.dst_node_id, "train", group_id="1"))
    found = {reply.metadata.src_node_id: arrays_of(reply) for reply in grid.stream(own)}
    grid.close()
    assert found == expected
    assert stored == [{ARRAYS: common[0].content[ARRAYS]}]


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nAnd more.")  # noqa: TRY002 - Ray raises it so

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", too_late)
    with pytest.raises(RunError) as found:
        RayGrid(CLIENTS, config={}, options=RayOptions(workers=2))
    assert str(found.value) == (
        "Ray can't be started on this machine: The current node timed out during startup.; or use --engine inline"
    )


def test_a_dead_actor_is_replaced_and_its_clients_are_tried_again(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Client 6 kills its process each time, 7 the first time only; nobody is lost with them, whoever was in
    one batch."""
    plan = small_plan()
    ray_cluster.unlink(missing_ok=True)
    grid = RayGrid(CLIENTS, config=config_of(plan, tmp_path), options=RayOptions(workers=2), app=FAULTY)
    replies = {r.metadata.src_node_id: r for r in grid.stream(train_messages(plan, grid, CLIENTS))}
    grid.close()
    assert len(replies) == len(CLIENTS)
    errors = {
        client: replies[node].error.code for client, node in grid.client_nodes.items() if replies[node].has_error()
    }
    assert errors == {"1": Fault.CLIENT_FAILED, "6": Fault.UNREACHABLE}
    assert ray_cluster.exists()  # client 7 did die


def test_who_trained_in_company_and_died_is_trained_again_to_the_same_bits(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    """By itself, but as one of its company."""
    plan, healthy = small_plan(), [client for client in CLIENTS if client in "0789"]
    (tmp_path / "inline").mkdir()
    inline = InlineGrid(healthy, config=config_of(plan, tmp_path / "inline"), together=3)
    expected = {r.metadata.src_node_id: arrays_of(r) for r in inline.stream(train_messages(plan, inline, healthy))}
    ray_cluster.unlink(missing_ok=True)
    grid = RayGrid(healthy, config=config_of(plan, tmp_path), options=RayOptions(workers=2), app=FAULTY, together=3)
    found = {r.metadata.src_node_id: arrays_of(r) for r in grid.stream(train_messages(plan, grid, healthy))}
    grid.close()
    assert ray_cluster.exists()  # client 7 did die
    assert found == expected


def test_an_error_reply_carries_no_text_and_the_log_says_where(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Rule 5: a failure is a fixed code; the exception's text, which held a record, stays behind."""
    plan, log = small_plan(), tmp_path / "clients.log"
    config = config_of(plan, tmp_path)
    grid = RayGrid(["0", "1"], config=config, options=RayOptions(workers=1), app=FAULTY, log=log)
    replies = list(grid.stream(train_messages(plan, grid, ["1"])))
    grid.close()
    assert [r.error.code for r in replies] == [Fault.CLIENT_FAILED]
    assert replies[0].error.reason == ""
    assert SECRET not in repr(replies[0])
    assert log.read_text().startswith("round 1  client 1: the app failed: RuntimeError at ")
    assert SECRET not in log.read_text()


def test_a_deadline_ends_the_stream_and_the_grid_goes_on(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = small_plan()
    grid = RayGrid(CLIENTS, config=config_of(plan, tmp_path), options=RayOptions(workers=1))
    assert len(list(grid.stream(train_messages(plan, grid, CLIENTS), timeout=0.0))) < len(CLIENTS)
    assert len(list(grid.stream(train_messages(plan, grid, CLIENTS)))) == len(CLIENTS)
    grid.close()


def test_flowers_own_interface_works_on_top(ray_cluster: Path, small_plan: PlanMaker) -> None:
    plan = small_plan()
    grid = RayGrid(CLIENTS, config={"plan": write_plan(plan)}, options=RayOptions(workers=2))
    question = RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: plan.digest()})})
    messages = [grid.create_message(question, IDENTIFY, node, "") for node in grid.get_node_ids()]
    replies = list(grid.pull_messages(grid.push_messages(messages)))
    grid.close()
    assert sorted(str(r.content.config_records[CONFIG][CLIENT_ID]) for r in replies) == CLIENTS
    assert len({r.metadata.reply_to_message_id for r in replies}) == len(CLIENTS)


def test_a_client_whose_process_died_is_charged_once_and_sends_what_it_had_committed(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Principle 5: client 3 dies before its charge, 5 after it, 7 with its reply already stored."""
    plan = small_plan("privacy.trust=local", "training.steps=1")
    markers = [ray_cluster.with_name(f"mortal-{client}") for client in "357"]
    config = config_of(plan, tmp_path)
    app = "tests.simulations.mortal_app:app"
    grid = RayGrid(CLIENTS, config=config, options=RayOptions(workers=2), app=app)
    replies = list(grid.stream(train_messages(plan, grid, CLIENTS)))
    assert all(marker.exists() for marker in markers)
    assert not [reply.error for reply in replies if reply.has_error()]
    again = list(grid.stream(train_messages(plan, grid, CLIENTS)))
    grid.close()
    ledger = Path(config["ledger"])
    assert reserved(ledger) == committed(ledger) == {(client, "train", 1): 1 for client in CLIENTS}
    assert {reply.metadata.src_node_id: arrays_of(reply) for reply in replies} == {
        reply.metadata.src_node_id: arrays_of(reply) for reply in again
    }


def test_a_client_that_is_given_up_is_charged_no_second_time(
    ray_cluster: Path, small_plan: PlanMaker, tmp_path: Path
) -> None:
    """Its worker is killed at the deadline, wherever it was; the same request finds its reservation again."""
    plan = small_plan("privacy.trust=local", "training.steps=1")
    config = config_of(plan, tmp_path)
    grid = RayGrid(CLIENTS, config=config, options=RayOptions(workers=1))
    heard = list(grid.stream(train_messages(plan, grid, CLIENTS), timeout=0.3))
    again = list(grid.stream(train_messages(plan, grid, CLIENTS)))
    grid.close()
    assert {reply.metadata.src_node_id for reply in heard} <= {reply.metadata.src_node_id for reply in again}
    assert len(again) == 10
    assert reserved(Path(config["ledger"])) == {(client, "train", 1): 1 for client in CLIENTS}
