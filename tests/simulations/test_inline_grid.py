"""The inline grid: one client after another, in this process."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from security.errors import VeilError
from shared_models.faults import Fault
from shared_models.flower_messages import states_from_bytes, states_to_bytes
from shared_models.plan_file import write_plan
from shared_models.protocol import CLIENT_ID, CONFIG, IDENTIFY, PLAN_DIGEST
from simulations.inline_grid import InlineGrid
from tests.simulations.conftest import PlanMaker, config_of, train_messages

# An app that counts in the message it was given, to see whether it is given its own copy.
spoiler = ClientApp()


@spoiler.query("identify")
def _spoil(message: Message, context: Context) -> Message:
    config = message.content.config_records[CONFIG]
    seen = int(str(config.get("seen", 0)))
    config["seen"] = seen + 1
    return Message(RecordDict({CONFIG: ConfigRecord({"seen": seen})}), reply_to=message)


def ask(grid: InlineGrid, digest: str) -> list[Message]:
    question = RecordDict({CONFIG: ConfigRecord({PLAN_DIGEST: digest})})
    return list(grid.send_and_receive([Message(question, node, IDENTIFY) for node in grid.get_node_ids()]))


def test_each_client_answers_for_itself(small_plan: PlanMaker) -> None:
    plan = small_plan()
    grid = InlineGrid(["north", "south"], config={"plan": write_plan(plan)})
    replies = ask(grid, plan.digest())
    assert [r.content.config_records[CONFIG][CLIENT_ID] for r in replies] == ["north", "south"]
    assert [r.metadata.src_node_id for r in replies] == list(grid.client_nodes.values())


def test_messages_that_share_a_content_do_not_share_what_a_client_does_to_it(small_plan: PlanMaker) -> None:
    plan = small_plan()
    grid = InlineGrid(["a", "b"], config={"plan": write_plan(plan)}, app="tests.simulations.test_inline_grid:spoiler")
    assert [r.content.config_records[CONFIG]["seen"] for r in ask(grid, plan.digest())] == [0, 0]


def test_what_veils_own_app_says_of_a_failure_names_round_and_client(
    small_plan: PlanMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stands in the run's own log alone: not in another run's of this process, nor on the screen."""
    plan, logs = small_plan(), [tmp_path / "one.log", tmp_path / "two.log"]
    config = config_of(plan, tmp_path)
    grids = [InlineGrid(["nobody"], config=config, log=log) for log in logs]
    (reply,) = grids[0].stream(train_messages(plan, grids[0], ["nobody"]))
    assert reply.error.code == Fault.CLIENT_FAILED
    assert re.fullmatch(
        r"round 1  client nobody: a train failed: KeyError at \S+client_records\.py:\d+\n", logs[0].read_text()
    )
    assert not logs[1].exists()
    assert caplog.records == []


def test_a_log_that_cant_be_written_stops_nothing(
    small_plan: PlanMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On another machine of a cluster the run's folder may not be there."""
    plan = small_plan()
    log = tmp_path / "elsewhere" / "clients.log"
    grid = InlineGrid(["1"], config=config_of(plan, tmp_path), app="tests.simulations.faulty_app:app", log=log)
    (reply,) = grid.stream(train_messages(plan, grid, ["1"]))
    assert reply.error.code == Fault.CLIENT_FAILED
    assert capsys.readouterr().err.startswith("round 1  client 1: the app failed: RuntimeError at ")
    assert not log.parent.exists()


def test_states_come_back_from_a_checkpoint_as_they_were() -> None:
    state = RecordDict({"account": ConfigRecord({"counts": [1, 2], "name": "ß", "raw": b"\x00\xff"})})
    restored = states_from_bytes(states_to_bytes({"a": state, "b": RecordDict()}))
    assert restored == {"a": state, "b": RecordDict()}


def test_a_checkpoint_has_the_states_of_who_remembers_something() -> None:
    """Of a million clients most may never have been asked, and most apps remember nothing."""
    grid, state = InlineGrid(["a", "b"], config={"plan": ""}), RecordDict({"seen": ConfigRecord({"rounds": 2})})
    grid.load_states(states_to_bytes({"a": state}))
    assert states_from_bytes(grid.save_states()) == {"a": state}


def test_damaged_states_are_refused() -> None:
    good = json.loads(states_to_bytes({"a": RecordDict({"x": ConfigRecord({"y": 1})})}))
    with pytest.raises((ValueError, VeilError)):
        states_from_bytes(b'{"a": 7')
    assert list(good) == ["a"]
