"""The federation loop on a grid in memory: outcomes, faults, resumption, and the same bits whatever the order."""

from __future__ import annotations

import errno
import os
import random
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from privacy.accountant import epsilon
from security.errors import RunError, UsageError
from server import federation as federation_module
from server.checkpoint import load_checkpoint
from server.evaluation import Metrics
from server.run_folder import RunFolder, read_parameters
from server.run_state import ClientTally
from shared_models.faults import Fault
from shared_models.parameters import Layout, Parameters, from_arrays
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFIG, EPSILON, LAYOUT_DIGEST, PLAN_DIGEST, ROUND, RUN, TRAIN_LOSS, WEIGHT
from tests.server.conftest import (
    LAYOUT,
    PRIVATE,
    START,
    Answer,
    Diary,
    FakeGrid,
    Played,
    Player,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    change,
    error,
    head,
    learns,
    learns_privately,
    make_plan,
    plain,
    private,
    reply,
    request,
    same_bits,
)

CLIENTS = [f"site-{i}" for i in range(7)]
SEVEN = {"data": {"partition": {"kind": "iid", "clients": 7}}}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavgm": {"server_momentum": 0.6},
    "fedadam": {"eta": 0.05},
    "fedyogi": {"eta": 0.05},
    "fedadagrad": {"eta": 0.05},
    "fedmedian": {},
    "krum": {"num_malicious_nodes": 1},
    "bulyan": {"num_malicious_nodes": 1},
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


def rounds(number: int, **keys: Any) -> dict[str, Any]:
    return {"federation": {"rounds": number, **keys}}


def silence(client: str, message: Message) -> list[Message]:
    return []


def fails(code: int) -> Answer:
    return lambda client, message: [error(message, code)]


def scripted(*values: float | None, metric: str = "accuracy") -> Callable[[Parameters], Metrics]:
    """An evaluation that finds these values, one after another, whatever the model."""
    left = list(values)

    def evaluate(parameters: Parameters) -> Metrics:
        value = left.pop(0)
        return {"loss": 1.0} if value is None else {metric: value}

    return evaluate


def distance(parameters: Parameters) -> Metrics:
    """An evaluation that follows from the model."""
    norm = float(np.sqrt(sum(np.square(value.astype(float)).sum() for value in parameters.values())))
    return {"loss": norm, "accuracy": 1 / (1 + norm)}


def charges(played: Played) -> dict[str, ClientTally]:
    return played.outcome.state.clients


def books(*charged: int, heard: int = 0, **fields: Any) -> ClientTally:
    """A client's tally: rounds it was charged, and the last one of which it told an entry of its ledger."""
    return ClientTally(charged=list(charged), head=head(heard) if heard else None, **fields)


# --- a run that goes well -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [FakeGrid, StreamingFakeGrid])
def test_a_run_plays_its_rounds_and_tells_the_observer_in_order(play: Player, grid: type[FakeGrid]) -> None:
    played = play(make_plan(rounds(3), SEVEN), grid(CLIENTS, learns), evaluate=distance)
    assert played.outcome.stopped is None
    assert played.outcome.reason is None
    assert list(played.outcome.nodes) == CLIENTS
    assert played.outcome.state.round == 3
    assert [kind for kind, _ in played.diary.entries] == ["started", "round", "round", "round"]
    assert played.diary.entries[0] == ("started", (7, 0))
    assert [record.round for record in played.diary.rounds] == [1, 2, 3]
    assert [line["round"] for line in played.folder.read_metrics()] == [1, 2, 3]


def test_a_round_is_on_disk_before_the_observer_hears_of_it(play: Player) -> None:
    plan = make_plan(rounds(3), SEVEN)

    class Checks(Diary):
        def round_done(self, record: Any) -> None:
            super().round_done(record)
            found = load_checkpoint(federation.folder.checkpoints, plan.digest())
            assert found is not None
            assert found.state.round == record.round
            assert [line["round"] for line in federation.folder.read_metrics()][-1] == record.round

    diary = Checks()
    federation = play.federation(plan, FakeGrid(CLIENTS, learns), diary=diary)
    federation.run()
    assert len(diary.rounds) == 3


def test_the_model_is_the_start_plus_the_weighted_mean_of_updates(play: Player) -> None:
    answers = {
        "a": lambda client, message: [plain(message, change(1.0), weight=3)],
        "b": lambda client, message: [plain(message, change(5.0), weight=1)],
    }
    played = play(make_plan(rounds(2)), StreamingFakeGrid(["a", "b"], answers))
    assert same_bits(
        played.outcome.parameters, {name: value + np.float32(2) + np.float32(2) for name, value in START.items()}
    )


def test_clients_get_the_model_the_round_and_both_digests(play: Player) -> None:
    plan = make_plan(rounds(2), SEVEN)
    grid = FakeGrid(CLIENTS, learns, first_node=20)
    played = play(plan, grid)
    train = grid.tasks
    assert [message.metadata.dst_node_id for message in train] == [*range(20, 27), *range(20, 27)]
    assert {message.content.config_records[CONFIG][RUN] for message in train} == {played.outcome.state.run}
    assert [message.metadata.group_id for message in train] == ["1"] * 7 + ["2"] * 7
    for number, messages in ((1, train[:7]), (2, train[7:])):
        for message in messages:
            config = message.content.config_records[CONFIG]
            assert config[ROUND] == number
            assert config[PLAN_DIGEST] == plan.digest()
            assert config[LAYOUT_DIGEST] == LAYOUT.digest
    assert same_bits(from_arrays(train[0].content.array_records[ARRAYS], LAYOUT), START)
    assert played.outcome.state.bytes_down == 14 * sum(
        len(array.data) for array in train[0].content.array_records[ARRAYS].values()
    )
    assert played.outcome.state.bytes_up == played.outcome.state.bytes_down


def test_a_line_of_metrics_says_what_happened(play: Player) -> None:
    plan = make_plan(rounds(1, min_clients=2), SEVEN)
    answers: dict[str, Answer] = {"site-5": fails(Fault.CLIENT_FAILED), "site-2": silence}
    played = play(plan, FakeGrid(CLIENTS, answers), evaluate=distance)
    (line,) = played.folder.read_metrics()
    assert line["faults"] == [
        {"client": "site-2", "reason": "timed-out"},
        {"client": "site-5", "reason": "client-failed"},
    ]
    assert (line["cohort"], line["updates"]) == (7, 5)
    assert line["train_loss"] == 1.0
    assert line["epsilon_max"] is None
    assert line["unit"] is None
    assert line["evaluation"] == distance(played.outcome.parameters)
    assert line["seconds"] >= 0


def test_the_timeout_is_the_plans(play: Player) -> None:
    grid = StreamingFakeGrid(CLIENTS, learns)
    play(make_plan(rounds(1, round_timeout=12.5), SEVEN), grid)
    assert grid.timeouts == [12.5]
    grid = StreamingFakeGrid(CLIENTS, learns)
    play(make_plan(rounds(1), SEVEN), grid)
    assert grid.timeouts == [None]


# --- the same bits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_arrival_order_node_numbers_and_kind_of_grid_change_no_bit(play: Player, strategy: str) -> None:
    """Principle 4: only the grid differs."""
    plan = make_plan(rounds(3, strategy=strategy, strategy_options=STRATEGIES[strategy]), SEVEN)
    expected = play(plan, FakeGrid(CLIENTS, learns)).outcome.parameters
    assert not same_bits(expected, START)
    shuffler = random.Random(0)
    grids = [
        StreamingFakeGrid(CLIENTS, learns, order=lambda found: found[::-1]),
        StreamingFakeGrid(CLIENTS, learns, order=lambda found: shuffler.sample(found, len(found))),
        StreamingFakeGrid(CLIENTS[::-1], learns, first_node=100),
        FakeGrid([*CLIENTS[3:], *CLIENTS[:3]], learns, order=lambda found: shuffler.sample(found, len(found))),
    ]
    for grid in grids:
        assert same_bits(play(plan, grid).outcome.parameters, expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("wire", ["float32", "float16"])
@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_a_run_resumed_in_the_middle_ends_with_the_same_bits(
    play: Player, strategy: str, wire: str, stopped_after: int
) -> None:
    """Principle 5. Node numbers are others after the restart; moments and momentum are not."""
    options = STRATEGIES[strategy]
    plan = make_plan(rounds(5, strategy=strategy, strategy_options=options, wire=wire), SEVEN)
    whole = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)
    broken = interrupted(play, plan, stopped_after)
    again = resumed(play, plan, broken, FakeGrid(CLIENTS, learns, first_node=50))
    assert again.diary.entries[0] == ("started", (7, stopped_after))
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)
    assert same_bits(read_parameters(again.folder.best_model), read_parameters(whole.folder.best_model))
    lines, expected = again.folder.read_metrics(), whole.folder.read_metrics()
    for line in (*lines, *expected):
        line.pop("seconds")
    assert lines == expected
    assert again.outcome.state.clients == whole.outcome.state.clients
    assert again.outcome.state.progress == whole.outcome.state.progress


def interrupted(play: Player, plan: Plan, after: int, **settings: Any) -> Any:
    """A run that was killed after so many rounds; its folder."""

    class Killed(FakeGrid):
        def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
            messages = list(messages)
            found = super().send_and_receive(messages, timeout=timeout)
            if messages[0].metadata.group_id == str(after + 1):
                raise StoppedOnPurposeError
            return found

    federation = play.federation(plan, Killed(CLIENTS, learns), evaluate=distance, **settings)
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    return federation.folder


def resumed(play: Player, plan: Plan, folder: Any, grid: FakeGrid, **settings: Any) -> Played:
    checkpoint = load_checkpoint(folder.checkpoints, plan.digest())
    assert checkpoint is not None
    return play(plan, grid, folder=folder, resume=checkpoint, **{"evaluate": distance, **settings})


def test_resuming_from_an_older_checkpoint_plays_the_lost_round_again(play: Player) -> None:
    plan = make_plan(rounds(4), SEVEN)
    whole = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)
    federation = play.federation(plan, FakeGrid(CLIENTS, learns), evaluate=distance, diary=StopAfter(3))
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    newest = federation.folder.checkpoints / "round-000003" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, learns))
    assert again.diary.entries[0] == ("started", (7, 2))
    assert [line["round"] for line in again.folder.read_metrics()] == [1, 2, 3, 4]
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)


def test_sixteen_bits_on_the_wire_halve_the_bytes_and_cost_little(play: Player) -> None:
    full = play(make_plan(rounds(3), SEVEN), FakeGrid(CLIENTS, learns))
    grid = FakeGrid(CLIENTS, learns)
    half = play(make_plan(rounds(3, wire="float16"), SEVEN), grid)
    sent = grid.tasks
    assert {array.dtype for array in sent[0].content.array_records[ARRAYS].values()} == {"float16"}
    for name, value in full.outcome.parameters.items():
        assert half.outcome.parameters[name].dtype == np.float32
        np.testing.assert_allclose(half.outcome.parameters[name], value, atol=5e-3)


def test_a_client_that_answers_in_the_wrong_width_is_a_mismatch(play: Player) -> None:
    answers: dict[str, Answer] = {"site-1": lambda client, message: [plain(message, change(0.1))]}
    played = play(make_plan(rounds(1, wire="float16"), SEVEN), FakeGrid(CLIENTS, answers))
    assert played.outcome.state.faults == [{"round": 1, "client": "site-1", "reason": "model-mismatch"}]


# --- faults -------------------------------------------------------------------------------------------------------


def shifted(**metrics: Any) -> Answer:
    return lambda client, message: [reply(message, change(0.1), **metrics)]


def with_value(value: float) -> Answer:
    return lambda client, message: [plain(message, {**change(0.1), "layer.bias": np.array([0, value], np.float32)})]


BAD: dict[str, tuple[Answer, str]] = {
    "error": (fails(Fault.CLIENT_FAILED), "client-failed"),
    "foreign code": (fails(2), "client-failed"),
    "other plan": (fails(Fault.PLAN_MISMATCH), "plan-mismatch"),
    "other model": (fails(Fault.MODEL_MISMATCH), "model-mismatch"),
    "no budget": (fails(Fault.BUDGET_EXHAUSTED), "budget-exhausted"),
    "dead": (fails(Fault.UNREACHABLE), "unreachable"),
    "silent": (silence, "timed-out"),
    "nan": (with_value(np.nan), "non-finite"),
    "huge": (with_value(2.0**41), "non-finite"),
    "a field too many": (shifted(**{WEIGHT: 1, TRAIN_LOSS: 0.1, "mean-age": 54.0}), "malformed-reply"),
    "an epsilon": (shifted(**{WEIGHT: 1, EPSILON: 0.1}), "malformed-reply"),
    "no weight": (shifted(**{TRAIN_LOSS: 0.1}), "malformed-reply"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_client_is_left_out_by_name_and_code(play: Player, kind: str) -> None:
    answer, reason = BAD[kind]
    plan = make_plan(rounds(1), SEVEN)
    without = [client for client in CLIENTS if client != "site-3"]
    expected = play(plan, StreamingFakeGrid(without, learns)).outcome.parameters
    played = play(plan, StreamingFakeGrid(CLIENTS, {"site-3": answer}))
    assert played.outcome.stopped is None
    assert played.outcome.state.faults == [{"round": 1, "client": "site-3", "reason": reason}]
    assert same_bits(played.outcome.parameters, expected)
    assert "text" not in played.folder.metrics.read_text()


@pytest.mark.parametrize("loss", [np.nan, np.inf, 1e308])
def test_a_hostile_loss_stops_no_run(play: Player, loss: float) -> None:
    """Infinity can't be written as JSON, and sums of huge numbers become it."""
    hostile: Answer = lambda client, message: [plain(message, change(0.1), weight=2**29, loss=loss)]  # noqa: E731
    played = play(make_plan(rounds(1), SEVEN), FakeGrid(CLIENTS, {"site-1": hostile, "site-2": hostile}))
    assert played.outcome.stopped is None
    assert played.folder.read_metrics()[0]["train_loss"] == 1.0
    everybody = play(make_plan(rounds(1), SEVEN), FakeGrid(CLIENTS, hostile))
    assert everybody.folder.read_metrics()[0]["train_loss"] is None


@pytest.mark.parametrize("told", [np.nan, np.inf, -1.0])
def test_a_hostile_epsilon_stops_no_run(play: Player, told: float) -> None:
    hostile: Answer = lambda client, message: [private(message, change(0.1), epsilon=told)]  # noqa: E731
    answers = dict.fromkeys(CLIENTS, learns_privately) | {"site-1": hostile}
    played = play(make_plan(rounds(1), SEVEN, PRIVATE), FakeGrid(CLIENTS, answers))
    assert played.outcome.state.faults == [{"round": 1, "client": "site-1", "reason": "malformed-reply"}]


@pytest.mark.parametrize("first", ["huge", "honest"])
def test_one_huge_update_has_no_other_one_refused(play: Player, first: str) -> None:
    """Whoever answers first: were the sum's limit used up by one client, the others would be called not finite."""
    huge: Answer = lambda client, message: [plain(message, change(2.0**40))]  # noqa: E731
    order = (lambda found: found) if first == "huge" else (lambda found: found[::-1])
    played = play(make_plan(rounds(1), SEVEN), StreamingFakeGrid(CLIENTS, {"site-0": huge}, order=order))
    assert played.outcome.state.faults == []


def test_answers_of_nobody_of_the_past_and_a_second_time_are_not_heard(play: Player) -> None:
    plan = make_plan(rounds(2), SEVEN)
    expected = play(plan, FakeGrid(CLIENTS, learns)).outcome.parameters

    def talkative(client: str, message: Message) -> list[Message]:
        (honest,) = learns(client, message)
        foreign = plain(request(node=99, group=message.metadata.group_id), change(100.0))
        neighbour = plain(request(node=1 + message.metadata.dst_node_id, group="7"), change(100.0))
        late = plain(request(node=message.metadata.dst_node_id, group="0"), change(100.0))
        again = plain(message, change(100.0))
        return [foreign, late, neighbour, honest, again, error(message, Fault.CLIENT_FAILED)]

    for grid in (FakeGrid(CLIENTS, talkative), StreamingFakeGrid(CLIENTS, talkative)):
        played = play(plan, grid)
        assert played.outcome.state.faults == []
        assert same_bits(played.outcome.parameters, expected)


def test_an_update_of_the_round_before_is_late_and_its_client_timed_out(play: Player) -> None:
    kept: dict[str, list[Message]] = {}

    def slow(client: str, message: Message) -> list[Message]:
        late = kept.get(client, [])
        kept[client] = learns(client, message)
        return late

    played = play(make_plan(rounds(3), SEVEN), StreamingFakeGrid(CLIENTS, {"site-4": slow}))
    assert [(fault["round"], fault["reason"]) for fault in played.outcome.state.faults] == [
        (number, "timed-out") for number in (1, 2, 3)
    ]
    assert charges(played)["site-4"] == books(1, 2, 3)


# --- too few ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("good", [0, 1, 2])
def test_below_the_minimum_the_run_fails_and_model_and_charges_are_kept(play: Player, good: int) -> None:
    plan = make_plan(rounds(3, min_clients=3), SEVEN, PRIVATE)

    def fading(client: str, message: Message) -> list[Message]:
        enough = int(message.metadata.group_id) < 2 or client in CLIENTS[:good]
        return learns_privately(client, message) if enough else [error(message, Fault.CLIENT_FAILED)]

    played = play(plan, FakeGrid(CLIENTS, fading))
    outcome = played.outcome
    assert outcome.stopped == "failed"
    assert outcome.reason == f"round 2: {good} good updates of 7 clients, the plan needs 3 (client-failed)"
    assert outcome.state.round == 1
    one_round = play(make_plan(rounds(1), SEVEN, PRIVATE), FakeGrid(CLIENTS, learns_privately))
    assert same_bits(outcome.parameters, one_round.outcome.parameters)
    checkpoint = load_checkpoint(played.folder.checkpoints, plan.digest())
    assert checkpoint is not None
    assert checkpoint.state == outcome.state
    assert [tally.charged for tally in checkpoint.state.clients.values()] == [[1, 2]] * 7
    assert {tally.rounds for tally in checkpoint.state.clients.values()} == {1}
    assert checkpoint.state.clients["site-6"].withdrawn == [2]
    assert [line["round"] for line in played.folder.read_metrics()] == [1]
    assert [record.round for record in played.diary.rounds] == [1]


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadam", "krum"])
def test_a_failed_run_can_go_on_and_asks_for_the_round_in_the_same_words(play: Player, strategy: str) -> None:
    """By them its clients know the task again: it is charged once, and who had answered sends the stored reply."""
    federation = {"strategy": strategy, "strategy_options": STRATEGIES[strategy], "min_clients": 7}
    plan = make_plan(rounds(3, **federation), SEVEN)
    whole = play(plan, FakeGrid(CLIENTS, learns))

    def once(client: str, message: Message) -> list[Message]:
        ill = client == "site-1" and message.metadata.group_id == "2"
        return [error(message, Fault.UNREACHABLE)] if ill else learns(client, message)

    failed = play(plan, FakeGrid(CLIENTS, once))
    assert failed.outcome.stopped == "failed"
    again = resumed(play, plan, failed.folder, FakeGrid(CLIENTS, learns), evaluate=None)
    assert again.outcome.stopped is None
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)
    assert charges(again)["site-0"] == books(1, 2, 3, rounds=3, heard=3)
    assert charges(again)["site-1"] == books(1, 2, 3, rounds=3, heard=3, withdrawn=[2])
    assert words(failed.grid.tasks[7:14]) == words(again.grid.tasks[:7])
    assert words(failed.grid.tasks[:7]) != words(failed.grid.tasks[7:14])


def words(messages: list[Message]) -> list[tuple[str, Any]]:
    """All that requests say, in the order of clients."""
    return [
        (name, [(key, value.data if isinstance(value, Array) else value) for key, value in record.items()])
        for message in messages
        for name, record in message.content.items()
    ]


def test_the_first_round_may_fail_and_leaves_a_checkpoint(play: Player) -> None:
    plan = make_plan(rounds(3), SEVEN)
    played = play(plan, FakeGrid(CLIENTS, silence), attachments=lambda: {"clients.json": b"states"})
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == "round 1: 0 good updates of 7 clients, the plan needs 1 (timed-out)"
    assert same_bits(played.outcome.parameters, START)
    checkpoint = load_checkpoint(played.folder.checkpoints, plan.digest())
    assert checkpoint is not None
    assert [tally.charged for tally in checkpoint.state.clients.values()] == [[1]] * 7
    assert checkpoint.attachments == {"clients.json": b"states"}


def test_the_runs_id_is_on_disk_before_anybody_hears_it(play: Player) -> None:
    """A run cut off in its first round must know it again: else its clients would be charged a second time."""
    plan = make_plan(rounds(2), SEVEN, PRIVATE)
    found: list[Any] = []

    def looks(client: str, message: Message) -> list[Message]:
        checkpoint = load_checkpoint(federation.folder.checkpoints, plan.digest())
        assert checkpoint is not None
        found.append((message.content.config_records[CONFIG][RUN], checkpoint.state.run))
        return learns_privately(client, message)

    federation = play.federation(plan, FakeGrid(CLIENTS, looks))
    federation.run()
    assert len(found) == 14
    assert len({run for pair in found for run in pair}) == 1


@pytest.mark.parametrize(("refusing", "stopped"), [(7, "budget"), (6, "budget"), (5, None)])
def test_when_budgets_leave_too_few_the_run_stops_for_budget(play: Player, refusing: int, stopped: str | None) -> None:
    plan = make_plan(rounds(2, min_clients=2), SEVEN, PRIVATE)

    def poor(client: str, message: Message) -> list[Message]:
        broke = message.metadata.group_id == "2" and client in CLIENTS[:refusing]
        return [error(message, Fault.BUDGET_EXHAUSTED)] if broke else learns_privately(client, message)

    played = play(plan, FakeGrid(CLIENTS, poor))
    assert played.outcome.stopped == stopped
    own = charges(played)["site-0"]
    assert (own.rounds, own.charged, own.refused) == (1, [1], [2])
    if stopped:
        assert played.outcome.reason == (
            f"round 2: {refusing} of 7 clients have no privacy budget left; {7 - refusing} good updates are too few, "
            "the plan needs 2"
        )
        assert played.outcome.state.round == 1


@pytest.mark.parametrize("cut_off", [True, False], ids=["cut off", "failed"])
def test_principle_5_a_private_round_played_again_is_charged_once(play: Player, cut_off: bool) -> None:
    """Clients as they are: a request that they know is answered again and costs nothing; others are paid for."""
    plan = make_plan(rounds(3), SEVEN, PRIVATE)
    paid: dict[str, set[str]] = {client: set() for client in CLIENTS}
    ill = [True]

    def pays(client: str, message: Message) -> list[Message]:
        task = repr(words([message]))
        if task not in paid[client] and len(paid[client]) == 3:
            return [error(message, Fault.BUDGET_EXHAUSTED)]
        paid[client].add(task)
        if ill[0] and message.metadata.group_id == "2":
            if cut_off and client == CLIENTS[-1]:
                raise StoppedOnPurposeError
            return []
        return learns_privately(client, message)

    federation = play.federation(plan, FakeGrid(CLIENTS, pays))
    with suppress(StoppedOnPurposeError):
        assert federation.run().stopped == "failed"
    ill[0] = False
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, pays), evaluate=None)
    assert again.diary.notes == []
    assert again.outcome.stopped is None
    assert {len(tasks) for tasks in paid.values()} == {3}
    assert {client: tally.charged for client, tally in charges(again).items()} == {key: [1, 2, 3] for key in CLIENTS}
    assert {tally.rounds for tally in charges(again).values()} == {3}


def test_rule_4_budgets_end_a_run_only_where_nothing_else_could_have_saved_it(play: Player) -> None:
    """A client that failed may have failed for its data: if it could have tipped the scales, the stop depends on
    data, and then what is claimed is every planned round."""
    answers: dict[str, Answer] = dict.fromkeys(CLIENTS, learns_privately)
    answers |= dict.fromkeys(CLIENTS[:5], fails(Fault.BUDGET_EXHAUSTED))
    answers["site-5"] = fails(Fault.CLIENT_FAILED)
    for least, stopped in ((2, "failed"), (3, "budget")):
        played = play(make_plan(rounds(2, min_clients=least), SEVEN, PRIVATE), FakeGrid(CLIENTS, answers))
        assert played.outcome.stopped == stopped


def test_failures_are_not_excused_by_a_few_empty_budgets(play: Player) -> None:
    answers: dict[str, Answer] = dict.fromkeys(CLIENTS, fails(Fault.CLIENT_FAILED))
    answers["site-0"] = fails(Fault.BUDGET_EXHAUSTED)
    played = play(make_plan(rounds(2, min_clients=3), SEVEN, PRIVATE), FakeGrid(CLIENTS, answers))
    assert played.outcome.stopped == "failed"
    assert "(budget-exhausted, client-failed)" in str(played.outcome.reason)


def test_too_few_clients_at_all_is_an_error_before_anything_is_asked(play: Player) -> None:
    grid = StreamingFakeGrid(["a"], learns)
    with pytest.raises(RunError, match="1 clients joined, the plan needs 2"):
        play(make_plan(rounds(1, min_clients=2)), grid)
    assert grid.sent == []


# --- cohorts ------------------------------------------------------------------------------------------------------


def test_empty_poisson_cohorts_are_rounds_in_which_nothing_happens(play: Player) -> None:
    plan = make_plan(rounds(40, cohort={"sampling": "poisson", "rate": 0.1}, strategy="fedadam"), SEVEN)
    grid = StreamingFakeGrid(CLIENTS, learns)
    played = play(plan, grid, evaluate=distance)
    assert played.outcome.stopped is None
    empty = [record for record in played.diary.rounds if record.cohort == 0]
    assert 10 < len(empty) < 35
    by_round = {record.round: record for record in played.diary.rounds}
    for record in empty:
        assert (record.updates, record.bytes_up, record.bytes_down, record.train_loss) == (0, 0, 0, None)
        if record.round > 1:
            assert record.evaluation == by_round[record.round - 1].evaluation
    asked = {int(message.metadata.group_id) for message in grid.sent}
    assert asked == {record.round for record in played.diary.rounds if record.cohort}
    assert sum(len(tally.charged) for tally in charges(played).values()) == len(grid.sent)


def test_a_run_of_empty_cohorts_alone_keeps_its_model(play: Player) -> None:
    plan = make_plan(rounds(3, cohort={"sampling": "poisson", "rate": 1e-9}), SEVEN, PRIVATE)
    played = play(plan, FakeGrid(CLIENTS, learns_privately), evaluate=distance)
    assert played.outcome.stopped is None
    assert same_bits(played.outcome.parameters, START)
    assert [record.epsilon_max for record in played.diary.rounds] == [0.0, 0.0, 0.0]


def test_only_the_cohort_is_asked_and_charged(play: Player) -> None:
    plan = make_plan(rounds(6, cohort={"sampling": "fixed", "size": 2}), SEVEN)
    grid = FakeGrid(CLIENTS, learns)
    played = play(plan, grid)
    assert len(grid.tasks) == 12
    assert sum(len(tally.charged) for tally in charges(played).values()) == 12
    assert {record.cohort for record in played.diary.rounds} == {2}


def test_a_cohort_smaller_than_the_minimum_must_be_complete(play: Player) -> None:
    plan = make_plan(rounds(1, cohort={"sampling": "fixed", "size": 2}, min_clients=3), SEVEN)
    assert play(plan, FakeGrid(CLIENTS, learns)).outcome.stopped is None
    (first, _) = sorted(charges(play(plan, FakeGrid(CLIENTS, learns))))
    failed = play(plan, FakeGrid(CLIENTS, {first: silence}))
    assert failed.outcome.reason == "round 1: 1 good updates of 2 clients, the plan needs 2 (timed-out)"


# --- strategies that fail -----------------------------------------------------------------------------------------


class OnlyHalf(FedAvg):
    """Asks half of the cohort; remembers nothing."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0)

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        messages = list(super().configure_train(server_round, arrays, config, grid))
        return sorted(messages, key=lambda message: message.metadata.dst_node_id)[::2]


class Nobody(OnlyHalf):
    """Asks nobody."""

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        return []


class Spoils(OnlyHalf):
    """Counts its rounds, and raises an error in the second one after it has counted."""

    def __init__(self) -> None:
        super().__init__()
        self.count = np.zeros(1)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.count += 1
        if server_round == 2:
            raise ValueError("can't")
        return super().aggregate_train(server_round, replies)

    def get_state(self) -> Mapping[str, np.ndarray]:
        return {"count": self.count}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.count = state["count"]


def test_bulyan_with_too_few_replies_fails_the_round_and_keeps_model_and_charges(play: Player) -> None:
    """Flower's strategy returns nothing then. That is no round: it is said, and the run can go on."""
    plan = make_plan(rounds(3, strategy="bulyan", strategy_options={"num_malicious_nodes": 1}), SEVEN)

    def fading(client: str, message: Message) -> list[Message]:
        lost = client == "site-1" and message.metadata.group_id == "2"
        return [] if lost else learns(client, message)

    played = play(plan, FakeGrid(CLIENTS, fading), evaluate=distance)
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == (
        "round 2: federation.strategy = 'bulyan': makes no model of 6 updates; it needs more"
    )
    assert played.outcome.state.round == 1
    assert {tuple(tally.charged) for tally in charges(played).values()} == {(1, 2)}
    whole = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)
    again = resumed(play, plan, played.folder, FakeGrid(CLIENTS, learns))
    assert again.outcome.stopped is None
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)


def test_a_strategy_that_raises_an_error_fails_the_round_and_forgets_it(play: Player) -> None:
    plan = make_plan(rounds(3, strategy=f"{__name__}:Spoils"), SEVEN)
    played = play(plan, FakeGrid(CLIENTS, learns))
    assert played.outcome.stopped == "failed"
    assert played.outcome.reason == f"round 2: federation.strategy = '{__name__}:Spoils': ValueError: can't"
    assert charges(played) == {client: books(1, 2, rounds=1, heard=2) for client in CLIENTS[::2]}
    checkpoint = load_checkpoint(played.folder.checkpoints, plan.digest())
    assert checkpoint is not None
    assert checkpoint.strategy is not None
    assert checkpoint.strategy["count"].tolist() == [1.0]  # the failed round is not in its memory


def test_a_strategy_may_ask_fewer_than_the_cohort_and_the_others_are_not_charged(play: Player) -> None:
    plan = make_plan(rounds(2, strategy=f"{__name__}:OnlyHalf"), SEVEN)
    played = play(plan, FakeGrid(CLIENTS, learns))
    assert played.outcome.stopped is None
    assert charges(played) == {client: books(1, 2, rounds=2, heard=2) for client in CLIENTS[::2]}
    assert [record.updates for record in played.diary.rounds] == [4, 4]


def test_a_strategy_that_asks_nobody_fails_the_round(play: Player) -> None:
    plan = make_plan(rounds(2, strategy=f"{__name__}:Nobody"), SEVEN)
    played = play(plan, FakeGrid(CLIENTS, learns))
    assert played.outcome.stopped == "failed"
    assert "0 good updates of 7 clients, the plan needs 1 (nobody else was asked)" in str(played.outcome.reason)
    assert charges(played) == {}


def test_a_strategy_without_state_cant_be_resumed_and_says_how_it_could(play: Player) -> None:
    plan = make_plan(rounds(3, strategy=f"{__name__}:OnlyHalf"), SEVEN)
    folder = interrupted(play, plan, 1)
    with pytest.raises(RunError, match=r"can't resume, it keeps no state; give the class get_state\(\) and set_state"):
        resumed(play, plan, folder, FakeGrid(CLIENTS, learns))


def test_a_strategy_without_state_is_told_of_at_the_start(play: Player) -> None:
    """Before anybody is asked, not when the run is to be resumed."""
    without = play(make_plan(rounds(1, strategy=f"{__name__}:OnlyHalf"), SEVEN), FakeGrid(CLIENTS, learns))
    assert [kind for kind, _ in without.diary.entries] == ["started", "note", "round"]
    assert without.diary.notes == [
        f"federation.strategy = '{__name__}:OnlyHalf' keeps no state, so this run can't be resumed; give the class "
        "get_state() and set_state(state)"
    ]
    for strategy in ("fedavg", f"{__name__}:Spoils"):
        played = play(make_plan(rounds(1, strategy=strategy), SEVEN), FakeGrid(CLIENTS, learns))
        assert played.diary.notes == []


def test_a_wrong_strategy_option_is_found_before_anybody_is_asked(play: Player) -> None:
    grid = StreamingFakeGrid(CLIENTS, learns)
    with pytest.raises(UsageError, match="no such option"):
        play(make_plan(rounds(1, strategy_options={"speed": 1}), SEVEN), grid)
    assert grid.sent == []


# --- evaluation and stopping --------------------------------------------------------------------------------------


def test_every_so_many_rounds_and_always_after_the_last(play: Player) -> None:
    plan = make_plan(rounds(8), SEVEN, {"evaluation": {"every": 3}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)
    assert [record.round for record in played.diary.rounds if record.evaluation is not None] == [3, 6, 8]
    assert played.outcome.state.evaluation == distance(played.outcome.parameters)


def test_without_an_evaluation_nothing_is_evaluated(play: Player) -> None:
    played = play(make_plan(rounds(2), SEVEN, {"evaluation": {"where": "none"}}), FakeGrid(CLIENTS, learns))
    assert [record.evaluation for record in played.diary.rounds] == [None, None]
    assert played.outcome.state.evaluation is None
    assert not played.folder.best_model.exists()


def test_a_target_ends_the_run(play: Player) -> None:
    plan = make_plan(rounds(9), SEVEN, {"evaluation": {"target": 0.8}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(0.1, 0.79, 0.8, 0.9))
    assert played.outcome.stopped == "target"
    assert played.outcome.state.round == 3
    assert played.outcome.reason is None


def test_a_plateau_ends_the_run_and_the_best_model_is_kept(play: Player) -> None:
    plan = make_plan(rounds(9), SEVEN, {"evaluation": {"patience": 2}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(0.1, 0.5, 0.4, None))
    assert played.outcome.stopped == "plateau"
    assert played.outcome.state.round == 4
    best = play(make_plan(rounds(2), SEVEN), FakeGrid(CLIENTS, learns)).outcome.parameters
    assert same_bits(read_parameters(played.folder.best_model), best)
    assert not same_bits(best, played.outcome.parameters)
    assert played.outcome.state.progress.best_round == 2


def test_a_smaller_loss_is_better(play: Player) -> None:
    plan = make_plan(rounds(4), SEVEN, {"evaluation": {"metric": "loss"}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(3.0, 1.0, 2.0, 5.0, metric="loss"))
    assert played.outcome.state.progress.best_round == 2


def test_a_metric_that_is_never_defined_keeps_no_best_model(play: Player) -> None:
    plan = make_plan(rounds(3), SEVEN, {"evaluation": {"metric": "auc", "patience": 2}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(None, None, None))
    assert played.outcome.stopped == "plateau"
    assert played.outcome.state.progress.best is None
    assert not played.folder.best_model.exists()


def test_a_run_that_had_reached_its_end_does_nothing_when_resumed(play: Player) -> None:
    plan = make_plan(rounds(9), SEVEN, {"evaluation": {"target": 0.8}})
    played = play(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(0.9))
    grid = StreamingFakeGrid(CLIENTS, learns)
    again = resumed(play, plan, played.folder, grid, evaluate=scripted())
    assert again.outcome.stopped == "target"
    assert grid.sent == []
    assert same_bits(again.outcome.parameters, played.outcome.parameters)


def test_the_final_metrics_are_the_final_models_however_the_run_ends(play: Player) -> None:
    """Evaluated every 4 rounds, failed in round 7: what is printed as final is the model of round 6."""

    def fading(client: str, message: Message) -> list[Message]:
        return learns(client, message) if int(message.metadata.group_id) < 7 else []

    plan = make_plan(rounds(9), SEVEN, {"evaluation": {"every": 4, "patience": 9}})
    played = play(plan, FakeGrid(CLIENTS, fading), evaluate=distance)
    assert played.outcome.stopped == "failed"
    assert played.outcome.state.evaluation == distance(played.outcome.parameters)
    assert played.outcome.state.progress.stale + played.outcome.state.progress.best_round <= 4  # and counts for nothing


def test_a_better_model_of_a_round_that_is_played_again_is_forgotten(play: Player) -> None:
    """With secret noise the round comes out otherwise: the best model must be one of this run's rounds."""
    plan = make_plan(rounds(3), SEVEN)
    federation = play.federation(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(0.5, 0.9))
    original = federation._checkpoint

    def killed(*arguments: Any, **named: Any) -> None:
        if arguments[1].round == 2:
            raise StoppedOnPurposeError
        original(*arguments, **named)

    federation._checkpoint = killed  # type: ignore[method-assign]
    with pytest.raises(StoppedOnPurposeError):
        federation.run()
    noisy: Answer = lambda client, message: [plain(message, change(0.3))]  # noqa: E731
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, noisy), evaluate=scripted(0.4, 0.3))
    assert again.outcome.state.progress.best_round == 1
    first = play(make_plan(rounds(1), SEVEN), FakeGrid(CLIENTS, learns)).outcome.parameters
    assert same_bits(read_parameters(again.folder.best_model), first)


def test_a_best_model_whose_round_is_on_disk_is_not_lost(play: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the last checkpoint and the rename of its model: on resumption no round is left to play."""
    plan = make_plan(rounds(2), SEVEN)
    federation = play.federation(plan, FakeGrid(CLIENTS, learns), evaluate=scripted(0.5, 0.9))
    with monkeypatch.context() as patch:
        original = RunFolder.keep_best

        def killed(folder: RunFolder, number: int) -> None:
            if number == 2:
                raise StoppedOnPurposeError
            original(folder, number)

        patch.setattr(RunFolder, "keep_best", killed)
        with pytest.raises(StoppedOnPurposeError):
            federation.run()
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, learns), evaluate=scripted())
    assert again.outcome.state.progress.best_round == 2
    assert same_bits(read_parameters(again.folder.best_model), again.outcome.parameters)


# --- privacy ------------------------------------------------------------------------------------------------------


def test_rule_1_the_books_of_a_private_run_hold_no_loss(play: Player) -> None:
    played = play(make_plan(rounds(2), SEVEN, PRIVATE), FakeGrid(CLIENTS, learns_privately))
    assert [record.train_loss for record in played.diary.rounds] == [None, None]


def test_rule_1_a_private_client_that_tells_its_loss_is_left_out(play: Player) -> None:
    def tells(client: str, message: Message) -> list[Message]:
        return [reply(message, change(0.1), **{WEIGHT: 1, EPSILON: 0.5, TRAIN_LOSS: 0.3})]

    answers = dict.fromkeys(CLIENTS, learns_privately) | {"site-2": tells}
    played = play(make_plan(rounds(1), SEVEN, PRIVATE), FakeGrid(CLIENTS, answers))
    assert played.outcome.state.faults == [{"round": 1, "client": "site-2", "reason": "malformed-reply"}]
    assert charges(played)["site-2"] == books(1, withdrawn=[1])  # rule 5


def test_the_epsilon_of_a_round_is_from_the_servers_books_and_says_its_unit(play: Player) -> None:
    """Rule 6 and principle 3: clients that say too little, or fail, make the figure no smaller."""
    plan = make_plan(rounds(3), SEVEN, PRIVATE)
    release = plan.train_release()
    assert release is not None
    spent = [epsilon({release: number}, plan.privacy.delta).epsilon for number in (1, 2, 3)]
    modest: Answer = lambda client, message: [private(message, change(0.1), epsilon=0.0)]  # noqa: E731
    answers: dict[str, Answer] = dict.fromkeys(CLIENTS, modest)
    answers["site-3"] = fails(Fault.CLIENT_FAILED)
    played = play(plan, FakeGrid(CLIENTS, answers))
    assert [record.epsilon_max for record in played.diary.rounds] == spent
    assert {record.unit for record in played.diary.rounds} == {"record, not person"}
    assert {line["unit"] for line in played.folder.read_metrics()} == {"record, not person"}
    boastful: Answer = lambda client, message: [private(message, change(0.1), epsilon=100.0)]  # noqa: E731
    louder = play(plan, FakeGrid(CLIENTS, {**answers, "site-1": boastful}))
    assert [record.epsilon_max for record in louder.diary.rounds] == [100.0] * 3


# --- the disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_from_the_last_checkpoint(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(rounds(4, strategy="fedadam"), SEVEN)
    whole = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)

    class Fills(Diary):
        def round_done(self, record: Any) -> None:
            if record.round == 2:

                def full(_: int) -> None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                monkeypatch.setattr(os, "fsync", full)

    federation = play.federation(plan, FakeGrid(CLIENTS, learns), evaluate=distance, diary=Fills())
    with pytest.raises(RunError, match=r"^[^\n]*\(No space left on device\)[^\n]*--resume$"):
        federation.run()
    monkeypatch.undo()
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, learns))
    assert again.diary.entries[0] == ("started", (7, 2))
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)


def test_only_a_simulation_s_quick_rounds_without_privacy_do_not_wait_for_the_disk(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ledger doesn't either. Metrics and checkpoint of a round wait both, or neither; every few seconds they do."""

    def waited(plan: Plan, answer: Answer, *, simulated: bool, seconds: float) -> list[bool]:
        now, found = [0.0], []

        class Slow(Diary):
            def round_done(self, record: Any) -> None:
                now[0] += seconds

        federation = play.federation(plan, FakeGrid(CLIENTS, answer), diary=Slow())
        federation.simulated = simulated
        with monkeypatch.context() as patch:
            patch.setattr("server.federation.time.monotonic", lambda: now[0])
            save, append = federation_module.save_checkpoint, RunFolder.append_metrics
            flags: list[bool] = []

            def saved(*given: Any, durable: bool) -> None:
                flags.append(durable)
                save(*given, durable=durable)

            def appended(*given: Any, durable: bool) -> None:
                flags.append(durable)
                append(*given, durable=durable)

            patch.setattr(federation_module, "save_checkpoint", saved)
            patch.setattr(RunFolder, "append_metrics", appended)
            federation.run()
        assert flags.pop(0)  # the run's own id
        for metrics, checkpoint in zip(flags[::2], flags[1::2], strict=True):
            assert metrics == checkpoint
            found.append(checkpoint)
        return found

    plain = partial(waited, make_plan(rounds(6), SEVEN), learns)
    assert plain(simulated=False, seconds=0.1) == [True] * 6
    assert plain(simulated=True, seconds=0.1) == [False] * 6
    assert plain(simulated=True, seconds=6.0) == [False, *[True] * 5]
    assert plain(simulated=True, seconds=2.5) == [False, False, True, False, True, False]
    assert waited(make_plan(rounds(6), SEVEN, PRIVATE), learns_privately, simulated=True, seconds=0.1) == [True] * 6


def test_a_disk_too_full_for_a_rounds_updates_costs_that_round_alone(
    play: Player, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(rounds(4, strategy="fedmedian"), SEVEN)
    whole = play(plan, FakeGrid(CLIENTS, learns), evaluate=distance)

    class Fills(Diary):
        def round_done(self, record: Any) -> None:
            if record.round == 2:
                monkeypatch.setattr("server.kept_models.IN_MEMORY", 100)
                monkeypatch.setattr(
                    "tempfile.TemporaryFile",
                    lambda **_: open("/dev/full", "r+b", buffering=0),  # noqa: PTH123, SIM115
                )

    federation = play.federation(plan, FakeGrid(CLIENTS, learns), evaluate=distance, diary=Fills())
    with pytest.raises(RunError, match=r"^[^\n]*updates \(No space left on device\)[^\n]*--resume$"):
        federation.run()
    monkeypatch.undo()
    again = resumed(play, plan, federation.folder, FakeGrid(CLIENTS, learns))
    assert again.diary.entries[0] == ("started", (7, 2))
    assert same_bits(again.outcome.parameters, whole.outcome.parameters)


# --- memory -------------------------------------------------------------------------------------------------------


def test_between_rounds_a_server_holds_one_model(play: Player) -> None:
    """What the next message is made of is the model itself; the first one and the one before are gone."""
    size, seen = 4_000_000, []
    layout = Layout((("w", (size // 4,)),), "float32")

    class Looks(Diary):
        def round_done(self, record: Any) -> None:
            grid.sent.clear()
            seen.append(tracemalloc.get_traced_memory()[0] / size)

    def ones(client: str, message: Message) -> list[Message]:
        return [plain(message, change(1.0, layout), layout=layout)]

    grid = StreamingFakeGrid(CLIENTS, ones)
    federation = play.federation(make_plan(rounds(3), SEVEN), grid, diary=Looks())
    federation.layout = layout
    tracemalloc.start()
    try:
        federation.initial = change(0.0, layout)
        outcome = federation.run()
    finally:
        tracemalloc.stop()
    assert outcome.parameters["w"][0] == 3.0
    assert len(seen) == 3
    assert max(seen) < 1.5
