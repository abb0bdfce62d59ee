"""Evaluation where the data is: who is asked, what is made of the answers, and what it costs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flwr.app import Message

from privacy.accountant import epsilon
from privacy.calibration import noise_multiplier_for
from server.client_evaluation import ClientEvaluation, evaluate_at_clients
from server.run_folder import read_parameters
from server.summary import summarise
from shared_models.faults import Fault
from shared_models.parameters import from_arrays, to_arrays, wire_bytes
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, LAYOUT_DIGEST, PLAN_DIGEST, ROUND, RUN
from shared_models.resolve import resolve
from tests.server.conftest import (
    LAYOUT,
    PRIVATE,
    START,
    Answer,
    FakeGrid,
    Played,
    Player,
    StreamingFakeGrid,
    counts,
    error,
    learns,
    learns_privately,
    make_plan,
    plain,
    same_bits,
)

CLIENTS = [f"site-{i}" for i in range(4)]
HELD_OUT = {"site-0": (8, 10), "site-1": (1, 3), "site-2": (0, 0), "site-3": (40, 50)}
AT_CLIENTS = {"evaluation": {"where": "clients"}, "federation": {"rounds": 3}}
PLAIN = make_plan(AT_CLIENTS)
SECRET = make_plan(PRIVATE, AT_CLIENTS)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


def judges(client: str, message: Message) -> list[Message]:
    """Trains and judges without privacy."""
    if message.metadata.message_type == "train":
        return learns(client, message)
    return [counts(message, *HELD_OUT[client])]


def judges_privately(client: str, message: Message) -> list[Message]:
    if message.metadata.message_type == "train":
        return learns_privately(client, message)
    correct, total = HELD_OUT[client]
    return [counts(message, correct + 2, total - 1, epsilon=0.75)]


def ask(plan: Plan, answers: Answer | dict[str, Answer], **settings: Any) -> tuple[ClientEvaluation, FakeGrid]:
    grid = StreamingFakeGrid(CLIENTS, answers)
    config = {PLAN_DIGEST: plan.digest(), LAYOUT_DIGEST: LAYOUT.digest, RUN: "r"}
    found = evaluate_at_clients(grid, plan, LAYOUT, START, grid.nodes, round_number=2, config=config, **settings)
    return found, grid


# --- one evaluation -----------------------------------------------------------------------------------------------


def test_without_privacy_it_is_exactly_the_pooled_accuracy() -> None:
    found, _ = ask(PLAIN, judges)
    assert found.metrics["accuracy"] == 49 / 63
    assert found.metrics["accuracy_low"] < 49 / 63 < found.metrics["accuracy_high"]
    assert set(found.metrics) == {"accuracy", "accuracy_low", "accuracy_high"}
    assert found.faults == []


def test_clients_get_the_new_model_and_what_every_request_says() -> None:
    found, grid = ask(PLAIN, judges)
    assert [message.metadata.message_type for message in grid.sent] == ["evaluate"] * 4
    for message in grid.sent:
        config = message.content.config_records[CONFIG]
        assert (config[ROUND], config[RUN], config[PLAN_DIGEST]) == (2, "r", PLAIN.digest())
        assert same_bits(from_arrays(message.content.array_records[ARRAYS], LAYOUT), START)
    assert found.sent == 4 * wire_bytes(to_arrays(START, LAYOUT))


def test_who_fails_or_says_nothing_is_left_out_and_named() -> None:
    answers: dict[str, Answer] = dict.fromkeys(CLIENTS, judges)
    answers["site-3"] = lambda client, message: [error(message, Fault.CLIENT_FAILED)]
    answers["site-1"] = lambda client, message: []
    answers["site-2"] = lambda client, message: [counts(message, 3, 2)]  # more right ones than there are
    found, _ = ask(PLAIN, answers)
    assert found.metrics["accuracy"] == 0.8
    assert {fault.client: fault.fault for fault in found.faults} == {
        "site-1": Fault.TIMED_OUT,
        "site-2": Fault.MALFORMED_REPLY,
        "site-3": Fault.CLIENT_FAILED,
    }


def test_an_answer_to_the_training_is_none_to_the_evaluation() -> None:
    def late(client: str, message: Message) -> list[Message]:
        found = counts(message, *HELD_OUT[client])
        found.metadata.group_id = "2"
        return [found]

    found, _ = ask(PLAIN, late)
    assert {fault.fault for fault in found.faults} == {Fault.TIMED_OUT}


def test_where_nothing_is_known_there_is_no_metric() -> None:
    assert ask(PLAIN, lambda client, message: [])[0].metrics == {}
    assert ask(PLAIN, lambda client, message: [counts(message, 0, 0)])[0].metrics == {}
    drowned: Answer = lambda client, message: [counts(message, 3, -2, epsilon=0.1)]  # noqa: E731
    assert ask(SECRET, drowned)[0].metrics == {}


def test_under_privacy_the_interval_knows_of_the_noise() -> None:
    quiet = make_plan(PRIVATE, AT_CLIENTS, {"evaluation": {"count_noise": 0.5}})
    loud = make_plan(PRIVATE, AT_CLIENTS, {"evaluation": {"count_noise": 3.0}})
    widths = []
    for plan in (quiet, loud):
        metrics = ask(plan, judges_privately)[0].metrics
        assert metrics["accuracy"] == 57 / 59
        widths.append(metrics["accuracy_high"] - metrics["accuracy_low"])
    assert widths[0] < widths[1]


# --- in a run -----------------------------------------------------------------------------------------------------


def summary_of(plan: Plan, played: Played) -> dict[str, Any]:
    outcome = played.outcome
    return summarise(
        plan,
        outcome.state,
        stopped=outcome.stopped,
        reason=outcome.reason,
        clients=list(outcome.nodes),
        startup_seconds=0.1,
    )


def test_each_planned_evaluation_is_in_the_metrics_and_charged(play: Player) -> None:
    plan = make_plan(PRIVATE, AT_CLIENTS, {"evaluation": {"every": 2}, "federation": {"rounds": 5}})
    played = play(plan, FakeGrid(CLIENTS, judges_privately))
    lines = played.folder.read_metrics()
    assert [line["evaluation"] is not None for line in lines] == [False, True, False, True, True]
    for tally in played.outcome.state.clients.values():
        assert (tally.charged, tally.evaluated) == ([1, 2, 3, 4, 5], [2, 4, 5])
        assert tally.reported == 0.75
    train, judged = plan.train_release(), plan.evaluate_release()
    assert train is not None
    assert judged is not None
    for line, (rounds, evaluations) in zip(lines, [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3)], strict=True):
        expected = epsilon({train: rounds, judged: evaluations}, plan.privacy.delta).epsilon
        assert line["epsilon_max"] == max(expected, 0.5 if rounds < 2 else 0.75)
    privacy = summary_of(plan, played)["privacy"]
    assert {(row["charged_rounds"], row["charged_evaluations"]) for row in privacy["clients"]} == {(5, 3)}
    assert played.outcome.state.bytes_down == (5 + 3) * 4 * wire_bytes(to_arrays(START, LAYOUT))
    assert sum(line["bytes_down"] for line in lines) == played.outcome.state.bytes_down


def test_the_calibration_pays_for_the_evaluations_too(play: Player) -> None:
    """The plan's epsilon is that of training and counts together; all its rounds fit into it."""
    plan = resolve(make_plan({"privacy": {"trust": "local", "epsilon": 4.0}}, AT_CLIENTS))
    without = resolve(make_plan({"privacy": {"trust": "local", "epsilon": 4.0}}, {"federation": {"rounds": 3}}))
    assert plan.privacy.noise_multiplier is not None
    assert without.privacy.noise_multiplier is not None
    assert plan.privacy.noise_multiplier > without.privacy.noise_multiplier
    assert without.privacy.noise_multiplier == noise_multiplier_for(
        epsilon=4.0, delta=1e-5, sample_rate=0.1, steps=30, records_per_unit=1
    )
    played = play(plan, FakeGrid(CLIENTS, judges_privately))
    privacy = summary_of(plan, played)["privacy"]
    assert 3.9 < privacy["epsilon_max"] <= privacy["epsilon_planned"] == 4.0


def test_without_privacy_the_final_accuracy_is_the_pooled_one_and_costs_nothing(play: Player) -> None:
    played = play(PLAIN, FakeGrid(CLIENTS, judges))
    summary = summary_of(PLAIN, played)
    assert summary["final"]["accuracy"] == 49 / 63
    assert summary["best"] == {"round": 1, "metric": "accuracy", "value": 49 / 63}
    assert {row["epsilon"] for row in summary["privacy"]["clients"]} == {None}
    json.dumps(summary, allow_nan=False)


def test_only_the_rounds_cohort_is_asked(play: Player) -> None:
    plan = make_plan(AT_CLIENTS, {"federation": {"rounds": 6, "cohort": {"sampling": "fixed", "size": 2}}})
    played = play(plan, FakeGrid(CLIENTS, judges))
    tasks = played.grid.tasks
    assert len(tasks) == 24
    for number in range(6):
        train, judged = tasks[4 * number : 4 * number + 2], tasks[4 * number + 2 : 4 * number + 4]
        assert [m.metadata.message_type for m in train + judged] == ["train"] * 2 + ["evaluate"] * 2
        assert [m.metadata.dst_node_id for m in train] == [m.metadata.dst_node_id for m in judged]
    for tally in played.outcome.state.clients.values():
        assert tally.charged == tally.evaluated


def test_a_client_that_fails_an_evaluation_is_charged_and_its_claim_withdrawn(play: Player) -> None:
    """Rule 5: whether it failed may depend on what it holds out. The round itself is good."""

    def fails(client: str, message: Message) -> list[Message]:
        judging = message.metadata.message_type == "evaluate"
        return [error(message, Fault.CLIENT_FAILED)] if judging else judges_privately(client, message)

    played = play(SECRET, FakeGrid(CLIENTS, dict.fromkeys(CLIENTS, judges_privately) | {"site-3": fails}))
    assert played.outcome.stopped is None
    tally = played.outcome.state.clients["site-3"]
    assert (tally.rounds, tally.evaluated, tally.withdrawn) == (3, [1, 2, 3], [1, 2, 3])
    assert played.outcome.state.faults[0] == {"round": 1, "client": "site-3", "reason": "client-failed"}


def test_budgets_that_end_with_the_evaluations_leave_the_rounds_their_updates(play: Player) -> None:
    """Refused evaluations are no failed round: the run goes on, and judges no more."""

    def poor(client: str, message: Message) -> list[Message]:
        judging = message.metadata.message_type == "evaluate"
        late = int(message.metadata.group_id.split()[0]) > 1
        return [error(message, Fault.BUDGET_EXHAUSTED)] if judging and late else judges_privately(client, message)

    played = play(SECRET, FakeGrid(CLIENTS, poor))
    assert played.outcome.stopped is None
    assert [line["evaluation"] for line in played.folder.read_metrics()][1:] == [{}, {}]
    assert {tuple(tally.evaluated) for tally in played.outcome.state.clients.values()} == {(1,)}


def test_a_target_is_reached_on_what_clients_say_and_the_best_model_is_kept(play: Player) -> None:
    def improving(client: str, message: Message) -> list[Message]:
        number = int(message.metadata.group_id.split()[0])
        if message.metadata.message_type == "train":
            return [plain(message, {name: value * 0 + number for name, value in START.items()})]
        return [counts(message, 3 * number, 10)]

    plan = make_plan(AT_CLIENTS, {"evaluation": {"target": 0.6}, "federation": {"rounds": 9}})
    played = play(plan, FakeGrid(CLIENTS, improving))
    assert (played.outcome.stopped, played.outcome.state.round) == ("target", 2)
    assert same_bits(read_parameters(played.folder.best_model), played.outcome.parameters)
