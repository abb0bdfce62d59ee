"""What the server remembers of its clients' ledgers: who comes back with less than that is not asked any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from flwr.app import Message

from server.checkpoint import load_checkpoint
from server.replies import Head
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.protocol import CONFIG, HEAD_HASH, HEAD_POSITION, LEDGER, PLAN_DIGEST, STATEMENT
from tests.server.conftest import (
    PRIVATE,
    FakeGrid,
    Played,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    counts,
    head,
    head_record,
    learns_privately,
    make_plan,
)

CLIENTS = [f"site-{i}" for i in range(5)]
ROLLED_BACK = "its ledger lacks entries that it told of before, or can't be read; it is left out"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


def plan_of(least: int = 1, rounds: int = 4, **tables: Any) -> Plan:
    partition = {"data": {"partition": {"kind": "iid", "clients": 5}}}
    return make_plan(PRIVATE, partition, {"federation": {"rounds": rounds, "min_clients": least}}, tables)


def stopped_after(play: Player, plan: Plan, last: int) -> Any:
    """A run that was killed after so many rounds; its folder."""
    federation = play.federation(plan, FakeGrid(CLIENTS, learns_privately), diary=StopAfter(last))
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    return federation.folder


def gone_on(play: Player, plan: Plan, folder: Any, statements: Mapping[str, str | Fault], **settings: Any) -> Played:
    """The same run, whose clients answer these things when they are reminded."""
    grid = StreamingFakeGrid(CLIENTS, learns_privately)
    grid.statements.update(statements)
    checkpoint = load_checkpoint(folder.checkpoints, plan.digest())
    return play(plan, grid, folder=folder, resume=checkpoint, **settings)


def asked(grid: FakeGrid) -> set[str]:
    names = {node: client for client, node in grid.nodes.items()}
    return {names[message.metadata.dst_node_id] for message in grid.tasks}


# --- on resumption ------------------------------------------------------------------------------------------------


def test_a_resumed_run_reminds_each_client_of_the_newest_entry_it_told_of(play: Player) -> None:
    """Before it asks anything that costs."""
    plan = plan_of()
    played = gone_on(play, plan, stopped_after(play, plan, 2), {})
    assert [message.metadata.message_type for message in played.grid.sent[:6]] == [STATEMENT] * 5 + ["train"]
    for message in played.grid.sent[:5]:
        config = message.content.config_records[CONFIG]
        assert (config[HEAD_POSITION], config[HEAD_HASH]) == (head(2).position, head(2).hash)
        assert config[PLAN_DIGEST] == plan.digest()
    assert played.diary.notes == []  # to have no statement is no reason to be left out
    assert played.outcome.stopped is None


def test_clients_that_told_of_nothing_yet_are_not_reminded(play: Player) -> None:
    plan = plan_of()

    def silent_at_first(client: str, message: Message) -> list[Message]:
        return [] if client == "site-1" else learns_privately(client, message)

    federation = play.federation(plan, FakeGrid(CLIENTS, silent_at_first), diary=StopAfter(1))
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    played = gone_on(play, plan, federation.folder, {})
    reminded = [message for message in played.grid.sent if message.metadata.message_type == STATEMENT]
    assert len(reminded) == 4
    assert asked(played.grid) == set(CLIENTS)


def test_a_run_that_has_nothing_left_to_ask_reminds_nobody(play: Player) -> None:
    plan = plan_of(rounds=2)
    assert gone_on(play, plan, stopped_after(play, plan, 2), {}).grid.sent == []


def test_a_client_whose_ledger_was_rolled_back_is_left_out_and_named_in_every_round(play: Player) -> None:
    plan = plan_of()
    played = gone_on(play, plan, stopped_after(play, plan, 2), {"site-3": Fault.LEDGER_CLOSED})
    assert played.diary.notes == [f"client site-3: {ROLLED_BACK}"]
    assert asked(played.grid) == set(CLIENTS) - {"site-3"}
    assert played.outcome.stopped is None
    for line in played.folder.read_metrics()[2:]:
        assert line["faults"] == [{"client": "site-3", "reason": "ledger-closed"}]
        assert (line["cohort"], line["updates"]) == (5, 4)
    tally = played.outcome.state.clients["site-3"]
    assert (tally.charged, tally.refused, tally.rounds) == ([1, 2], [3, 4], 2)
    assert list(played.outcome.nodes) == CLIENTS  # what it spent stands in the summary all the same


@pytest.mark.parametrize("fault", [Fault.CLIENT_FAILED, Fault.UNREACHABLE, Fault.PLAN_MISMATCH])
def test_any_other_trouble_with_the_reminder_leaves_nobody_out(play: Player, fault: Fault) -> None:
    plan = plan_of()
    played = gone_on(play, plan, stopped_after(play, plan, 2), {"site-3": fault})
    assert asked(played.grid) == set(CLIENTS)


def test_where_every_ledger_is_gone_the_run_fails_and_trains_nothing(play: Player) -> None:
    plan = plan_of()
    folder = stopped_after(play, plan, 2)
    played = gone_on(play, plan, folder, dict.fromkeys(CLIENTS, Fault.LEDGER_CLOSED))
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == "round 3: 0 good updates of 5 clients, the plan needs 1 (ledger-closed)"
    assert played.grid.tasks == []
    assert played.outcome.state.round == 2


def test_clients_left_out_do_not_lower_the_plans_minimum(play: Player) -> None:
    plan = plan_of(least=4)
    folder = stopped_after(play, plan, 2)
    played = gone_on(play, plan, folder, {"site-0": Fault.LEDGER_CLOSED, "site-1": Fault.LEDGER_CLOSED})
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == "round 3: 3 good updates of 5 clients, the plan needs 4 (ledger-closed)"


def test_cohorts_are_the_same_whoever_is_left_out(play: Player) -> None:
    """A round that is played again asks the same clients: nobody else is charged for it."""
    plan = plan_of(rounds=12, federation={"cohort": {"sampling": "fixed", "size": 2}, "rounds": 12})
    whole = play(plan, FakeGrid(CLIENTS, learns_privately))
    federation = play.federation(plan, FakeGrid(CLIENTS, learns_privately), diary=StopAfter(3))
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    known = sorted(
        client for client, tally in whole.outcome.state.clients.items() if tally.charged and tally.charged[0] <= 3
    )
    played = gone_on(play, plan, federation.folder, {known[0]: Fault.LEDGER_CLOSED})
    clients = played.outcome.state.clients
    for client, tally in whole.outcome.state.clients.items():
        expected = tally.charged if client != known[0] else sorted(clients[client].charged + clients[client].refused)
        assert expected == tally.charged


# --- during a run -------------------------------------------------------------------------------------------------


def tells(told: Mapping[int, Head]) -> Any:
    """A client that tells other heads in some rounds."""

    def answer(client: str, message: Message) -> list[Message]:
        found = learns_privately(client, message)
        number = int(message.metadata.group_id)
        if number in told:
            found[0].content[LEDGER] = head_record(told[number])
        return found

    return answer


@pytest.mark.parametrize(
    "told", [head(1), Head(head(2).position, "f" * 64), Head(0, "f" * 64)], ids=["older", "rewritten", "new"]
)
def test_a_client_that_contradicts_itself_is_not_asked_again(play: Player, told: Head) -> None:
    """Its update of that round has arrived, and counts; what it says from then on proves nothing."""
    plan = plan_of()
    answers = dict.fromkeys(CLIENTS, learns_privately) | {"site-2": tells({3: told})}
    played = play(plan, FakeGrid(CLIENTS, answers))
    assert played.diary.notes == [f"client site-2: {ROLLED_BACK}"]
    tally = played.outcome.state.clients["site-2"]
    assert (tally.rounds, tally.charged, tally.refused, tally.contradicted) == (3, [1, 2, 3], [4], [3])
    assert tally.head == head(2)  # and of this it is reminded when the run is resumed
    assert played.outcome.stopped is None


def test_a_client_that_contradicts_itself_is_not_asked_to_judge_the_model_either(play: Player) -> None:
    plan = plan_of(evaluation={"where": "clients"})

    def good(client: str, message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return [counts(message, 5, 10, epsilon=0.5)]
        return learns_privately(client, message)

    def bad(client: str, message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            return good(client, message)
        return tells({2: head(0)})(client, message)

    played = play(plan, FakeGrid(CLIENTS, dict.fromkeys(CLIENTS, good) | {"site-2": bad}))
    judged = [m for m in played.grid.tasks if m.metadata.message_type == "evaluate"]
    assert [m.metadata.dst_node_id for m in judged].count(played.grid.nodes["site-2"]) == 1
    assert played.outcome.state.clients["site-2"].evaluated == [1]


def test_one_that_contradicts_itself_in_an_evaluation_is_left_out_too(play: Player) -> None:
    plan = plan_of(evaluation={"where": "clients"})

    def good(client: str, message: Message) -> list[Message]:
        if message.metadata.message_type == "evaluate":
            found = counts(message, 5, 10, epsilon=0.5)
            if client == "site-2":
                found.content[LEDGER] = head_record(head(0))
            return [found]
        return learns_privately(client, message)

    played = play(plan, FakeGrid(CLIENTS, good))
    assert played.outcome.state.clients["site-2"].contradicted == [1]
    assert played.outcome.state.clients["site-2"].charged == [1]
