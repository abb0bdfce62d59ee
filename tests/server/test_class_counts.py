"""What clients' counts by class say: intervals that hold, replies that are no table, and what a run keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from scipy.stats import binom

from privacy.accountant import epsilon
from privacy.mechanisms import NoisyTable
from security.errors import UsageError
from server.assessment.facts import Evaluation, json_text
from server.assessment.page import html
from server.assessment.released import of_released
from server.class_counts import ClassCounts
from server.noisy_counts import Counts, accuracy, ratio_of_cells
from server.replies import ClientFault, CountsReply, read_counts
from server.run_state import RunState
from server.summary import summarise
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.protocol import ARRAYS, CONFUSION, CORRECT, EPSILON, LEDGER, METRICS
from tests.server.conftest import PRIVATE, FakeGrid, Player, head, head_record, learns, learns_privately, make_plan

CLIENTS = [f"site-{i}" for i in range(4)]
BY_CLASS = {"evaluation": {"where": "clients", "per_class": True, "count_noise": 4.0}, "federation": {"rounds": 3}}
PLAIN, SECRET = make_plan(BY_CLASS), make_plan(PRIVATE, BY_CLASS)
CLASSES = 10
SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flwr.supercore.logger.FLOWER_LOGGER.disabled", True)


# --- intervals


def test_without_noise_it_is_the_interval_of_exact_counts() -> None:
    for right, of in ((0, 5), (3, 5), (40, 50)):
        cells = ratio_of_cells(right, of, cells=(1, 10), clients=3, noise=0.0)
        assert cells == accuracy([Counts(correct=right, total=of)], noise=0.0)


def covered(true: np.ndarray, noise: float, clients: int, label: int, draws: int = 1500) -> dict[str, float]:
    """How often the intervals of accuracy, recall and precision hold the rates that the tables were drawn with."""
    rng = np.random.default_rng(7)
    n = 400
    classes = len(true)
    held = dict.fromkeys(("accuracy", "recall", "precision"), 0)
    expected = {
        "accuracy": np.trace(true),
        "recall": true[label, label] / true[label].sum(),
        "precision": true[label, label] / true[:, label].sum(),
    }
    for _ in range(draws):
        tables = [
            rng.multinomial(n, true.ravel()).reshape(classes, classes)
            + np.rint(rng.normal(0, noise, (classes, classes))).astype(np.int64)
            for _ in range(clients)
        ]
        found = ClassCounts.of(tables, round_number=1, noise=noise)
        assert found is not None
        for name, one in (
            ("accuracy", found.accuracy()),
            ("recall", found.recall(label)),
            ("precision", found.precision(label)),
        ):
            held[name] += one.low <= expected[name] <= one.high
    return {name: times / draws for name, times in held.items()}


@pytest.mark.parametrize(("noise", "clients"), [(0.0, 2), (10.0, 5), (30.0, 4)])
def test_intervals_cover_noise_and_chance(noise: float, clients: int) -> None:
    """False alarm: 1e-6 each, against a true coverage of 95 % (1500 draws; the sum of independent ones is binomial)."""
    true = np.array([[0.35, 0.05, 0.02], [0.04, 0.2, 0.06], [0.03, 0.05, 0.2]])
    least = binom.ppf(1e-6, 1500, 0.95) / 1500
    most = binom.ppf(1 - 1e-6, 1500, 0.95) / 1500
    for name, part in covered(true, noise, clients, label=1).items():
        assert least <= part, name
        assert part <= most + 0.02, name  # it may be a little too wide, not much


def test_what_noise_drowns_is_not_told() -> None:
    table = np.full((3, 3), 2)
    table[0, 0] = 900
    found = ClassCounts.of([table], round_number=4, noise=40.0)
    assert found is not None
    facts = of_released(plan_of_three(), found, setting="deployment")
    assert [row.recall is None for row in facts.classes] == [False, True, True]
    assert facts.accuracy is not None
    assert facts.balanced_accuracy == found.balanced_accuracy() == pytest.approx(900 / 904)
    drowned = ClassCounts.of([np.array([[3, -2], [1, -9]])], round_number=1, noise=40.0)
    assert drowned is not None
    assert (drowned.metrics(), drowned.balanced_accuracy()) == ({}, None)
    nothing = of_released(plan_of_three(2), drowned, setting="deployment")
    assert nothing.accuracy is None
    assert "drowns" in html(nothing)


def plan_of_three(classes: int = 3) -> Plan:
    card = {
        "classes": [f"<{i}>" for i in range(classes)],
        "target": "y",
        "columns": {"a": {"kind": "numeric", "low": 0, "high": 1}},
    }
    return make_plan(PRIVATE, BY_CLASS, {"data": {"name": "csv", "path": "a.csv", "card": card}})


def test_its_files_are_as_promised() -> None:
    tables = [np.array([[50, 3, 2], [4, 60, 1], [0, -1, 70]])] * 3
    found = ClassCounts.of(tables, round_number=2, noise=2.0)
    assert found is not None
    facts = of_released(plan_of_three(), found, setting="deployment")
    schema = json.loads((SCHEMAS / "evaluation.schema.json").read_text())
    jsonschema.validate(json.loads(json_text(facts)), schema)
    assert Evaluation.from_json(json.loads(json_text(facts))) == facts
    assert facts.protected
    assert facts.confusion is not None
    assert facts.confusion[2][1] == -3
    page = html(facts)
    assert "<0>" not in page
    assert "below zero" in page
    assert ClassCounts.from_json(json.loads(json.dumps(found.to_json()))) == found


# --- replies


def reply_with(message: Message, table: Any, *, private: bool, **metrics: Any) -> Message:
    content = RecordDict({ARRAYS: ArrayRecord({CONFUSION: Array(table)})})
    if private:
        content[METRICS] = MetricRecord({EPSILON: 0.75, **metrics})
    content[LEDGER] = head_record(head(int(message.metadata.group_id.split()[0]), evaluated=True))
    return Message(content, reply_to=message)


def request() -> Message:
    grid = FakeGrid(CLIENTS, learns)
    return Message(RecordDict(), next(iter(grid.nodes.values())), "evaluate", group_id="1 evaluate")


def good_table(client: str = "site-0") -> np.ndarray:
    table = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    table[0, 0], table[1, 1], table[1, 2] = 5, 3, 2 + CLIENTS.index(client)
    return table


def test_a_good_reply_is_a_table_and_its_sums() -> None:
    for plan, private in ((SECRET, True), (PLAIN, False)):
        found = read_counts(reply_with(request(), good_table(), private=private), "site-0", plan)
        assert isinstance(found, CountsReply)
        assert (found.correct, found.total, found.epsilon) == (8, 10, 0.75 if private else None)
        assert np.array_equal(found.table, good_table())  # type: ignore[arg-type]


LEAST = np.iinfo(np.int64).min


def changed(value: int) -> np.ndarray:
    table = good_table()
    table[3, 3] = value
    return table


@pytest.mark.parametrize(
    ("table", "private"),
    [
        (np.zeros((CLASSES, CLASSES), dtype=np.float64), True),
        (np.zeros((CLASSES, CLASSES), dtype=np.int32), True),
        (np.zeros((CLASSES + 1, CLASSES + 1), dtype=np.int64), True),
        (np.zeros(CLASSES**2, dtype=np.int64), True),
        (changed(2**41), True),
        (changed(-(2**41)), True),
        (changed(LEAST), True),
        (changed(-1), False),  # exact counts are never below zero
    ],
)
def test_what_is_no_table_is_malformed(table: np.ndarray, private: bool) -> None:
    plan = SECRET if private else PLAIN
    found = read_counts(reply_with(request(), table, private=private), "site-0", plan)
    assert found == ClientFault("site-0", Fault.MALFORMED_REPLY)


def test_more_or_less_than_a_table_is_malformed() -> None:
    more = reply_with(request(), good_table(), private=True, **{CORRECT: 3})
    endless = reply_with(request(), good_table(), private=True, **{EPSILON: float("inf")})
    lacking = reply_with(request(), good_table(), private=False)
    two = reply_with(request(), good_table(), private=True)
    two.content.array_records[ARRAYS]["other"] = Array(np.zeros(1))
    for reply in (more, endless, lacking, two):
        assert isinstance(read_counts(reply, "site-0", SECRET), ClientFault)
    # The form of the other kind of plan.
    assert isinstance(read_counts(reply_with(request(), good_table(), private=True), "site-0", PLAIN), ClientFault)


# --- in a run


def judges(private: bool) -> Any:
    def answer(client: str, message: Message) -> list[Message]:
        if message.metadata.message_type == "train":
            return (learns_privately if private else learns)(client, message)
        return [reply_with(message, good_table(client), private=private)]

    return answer


@pytest.mark.parametrize("private", [True, False])
def test_a_run_keeps_the_last_tables_sum_and_is_charged_for_each(play: Player, private: bool) -> None:
    plan = SECRET if private else PLAIN
    played = play(plan, FakeGrid(CLIENTS, judges(private)))
    state = played.outcome.state
    summary = summarise(plan, state, stopped=None, reason=None, clients=CLIENTS, startup_seconds=0.1)
    jsonschema.validate(summary, json.loads((SCHEMAS / "summary.schema.json").read_text()))
    kept = ClassCounts.from_json(summary["by_class"])
    assert (kept.round, kept.clients, kept.noise) == (3, 4, 4.0 if private else 0.0)
    assert np.array_equal(kept.table, sum(good_table(client) for client in CLIENTS))
    assert summary["final"]["accuracy"] == 32 / (40 + 6)
    if not private:
        assert summary["final"]["balanced_accuracy"] == pytest.approx((1 + 12 / 26) / 2)
    assert RunState.from_json(json.loads(json.dumps(state.to_json()))).by_class == summary["by_class"]
    if private:
        train, judged = plan.train_release(), plan.evaluate_release()
        assert train is not None
        assert judged == NoisyTable(noise=4.0)
        expected = epsilon({train: 3, judged: 3}, plan.privacy.delta).epsilon
        assert {row["epsilon"] for row in summary["privacy"]["clients"]} == {expected}
        assert epsilon({train: 3}, plan.privacy.delta).epsilon < expected


def test_a_plan_may_stop_by_balanced_accuracy_only_where_it_is_counted() -> None:
    assert make_plan(BY_CLASS, {"evaluation": {"metric": "balanced_accuracy"}}).evaluation.per_class
    with pytest.raises(UsageError, match=r"allowed: accuracy$"):
        make_plan({"evaluation": {"where": "clients", "metric": "balanced_accuracy"}})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"evaluation": {"where": "server", "per_class": True}}, "per_class is about counts of clients"),
        ({"data": {"name": "shakespeare", "partition": {"kind": "iid"}}, **BY_CLASS}, "no classes to count by"),
        ({"data": {"name": "npz", "card": {"classes": [str(i) for i in range(201)]}}, **BY_CLASS}, "201 classes"),
    ],
)
def test_where_nothing_can_be_counted_the_plan_is_refused(changes: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        make_plan(changes)


def test_plans_that_do_not_count_by_class_keep_their_digest_and_price() -> None:
    plan = make_plan(PRIVATE, {"evaluation": {"where": "clients"}})
    text = plan.model_dump(mode="json")
    assert text["evaluation"]["per_class"] is False
    assert plan.digest() == "781baa2bc168fac0c19753022c71c7838bc77d97263d7cc4a7d5016d50b1581c"
    other = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"per_class": True})})
    assert other.digest() != plan.digest()
    assert type(plan.evaluate_release()).__name__ == "NoisyCounts"
