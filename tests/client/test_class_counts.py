"""Counts by class at a client: what one record can change, the noise, the price, and what leaves (rules 6 and 10)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from client.datasets.records import Records
from client.egress import EgressError, classify, planned_fields
from client.evaluator import count_by_class, count_correct, noisy_table
from client.policy import simulated_policy
from client.workplace import workplace
from privacy.accountant import epsilon
from privacy.mechanisms import NoisyCounts, NoisyTable, release_from_json
from privacy.noise import NoiseSource, ReproducibleNoise
from shared_models.parameters import get_parameters
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFUSION, CORRECT, EPSILON, HEAD_HASH, HEAD_POSITION, LEDGER, METRICS
from shared_models.seeds import derive_key
from tests.client.conftest import AT_CLIENTS, Clients, layout_of, metrics_of, model_of, plan_of

BY_CLASS: dict[str, Any] = {**AT_CLIENTS, "per_class": True}
nan, inf = float("nan"), float("inf")


class Fixed(nn.Module):
    """Says of each example what its features say."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x


# Every kind of record that differs to the counts: each label with each guess, with and without a usable logit.
LOGITS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [inf, 0.0, 0.0], [nan, 5.0, 0.0], [-inf, -inf, -inf]]
KINDS = [(logits, label) for logits in LOGITS for label in range(3)]


def table_of(rows: Any, batch_size: int = 4) -> np.ndarray:
    rows = list(rows)
    own = Records.trusted(
        x=torch.tensor([logits for logits, _ in rows]).reshape(len(rows), 3),
        y=torch.tensor([label for _, label in rows], dtype=torch.int64),
    )
    model = Fixed()
    return count_by_class(model, get_parameters(model), own, classes=3, batch_size=batch_size)


def test_a_guess_that_is_no_class_is_wrong_and_still_counted() -> None:
    """A network of one's own may have more logits than there are classes."""
    x = torch.eye(5)
    own = Records.trusted(x=x, y=torch.tensor([0, 1, 2, 0, 1]))
    model = Fixed()
    found = count_by_class(model, get_parameters(model), own, classes=3, batch_size=2)
    assert found.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]


def test_each_example_is_in_one_cell_by_its_class_and_its_guess() -> None:
    for logits, label in KINDS:
        table = table_of([(logits, label)])
        assert table.sum() == 1
        assert table.dtype == np.int64
        wrong = any(map(np.isnan, logits))
        guess = (label + 1) % 3 if wrong else int(np.argmax(logits))
        assert table[label, guess] == 1


def test_the_sums_are_the_counts_that_leave_otherwise() -> None:
    generator = np.random.default_rng(1)
    rows = [KINDS[i] for i in generator.integers(len(KINDS), size=200)]
    own = Records.trusted(x=torch.tensor([r for r, _ in rows]), y=torch.tensor([y for _, y in rows]))
    model = Fixed()
    for batch_size in (1, 7, 512):
        table = table_of(rows, batch_size)
        correct, total = count_correct(model, get_parameters(model), own, batch_size=batch_size)
        assert (np.trace(table), table.sum()) == (correct, total)


def test_a_client_that_holds_nothing_out_counts_nothing() -> None:
    assert np.array_equal(table_of([]), np.zeros((3, 3)))


# --- sensitivity, by brute force over neighbours


@pytest.mark.parametrize("most", [1, 2, 3])
def test_rule_10_a_unit_moves_the_table_by_no_more_than_the_price_knows(most: int) -> None:
    """All data sets of up to two records of every kind, and all units of up to `most` records added to each."""
    bases = [rows for n in (0, 1, 2) for rows in itertools.combinations_with_replacement(KINDS[::5], n)]
    units = [rows for n in range(1, most + 1) for rows in itertools.combinations_with_replacement(KINDS, n)]
    changes = np.array([table_of(rows) for rows in units])
    lengths = np.sqrt((changes.reshape(len(units), -1).astype(float) ** 2).sum(1))
    price = NoisyTable(noise=1.0, records_per_unit=most).sensitivity
    assert lengths.max() == price  # reached: all of them in one cell
    for base in bases:  # whatever else is there, the same cells change
        before = table_of(base)
        for rows, change in list(zip(units, changes, strict=True))[:: 1 if most < 3 else 31]:
            assert np.array_equal(table_of([*base, *rows]) - before, change)


def test_the_same_noise_costs_less_than_that_of_right_and_all() -> None:
    cells, two = NoisyTable(noise=10.0, records_per_unit=3), NoisyCounts(noise=10.0, records_per_unit=3)
    assert cells.sensitivity == 3.0 < two.sensitivity
    assert epsilon({cells: 5}, 1e-5).epsilon < epsilon({two: 5}, 1e-5).epsilon
    assert release_from_json(cells.to_json()) == cells
    assert "one cell at most, noise 10 a cell, at most 3 records a unit" in cells.describe()


@pytest.mark.parametrize(
    "wrong", [{"noise": 0.0}, {"noise": -1.0}, {"noise": nan}, {"noise": 1.0, "records_per_unit": 0}]
)
def test_a_table_without_noise_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        NoisyTable(**wrong)


# --- noise


def test_every_cell_has_noise_of_its_own_as_large_as_the_price_says() -> None:
    """False alarm: 1e-9 for the variance (chi-square of 36,000 draws; rounding adds 1/12), 1e-6 for each of the others
    (Kolmogorov-Smirnov against the normal; correlations of 36 pairs, 7 standard deviations each)."""
    release, source = NoisyTable(noise=10.0), ReproducibleNoise(b"table test")
    counts = np.arange(9, dtype=np.int64).reshape(3, 3)
    drawn = np.array([noisy_table(counts, release, source) - counts for _ in range(4000)]).reshape(4000, 9)
    assert drawn.dtype == np.int64
    low, high = chi2.ppf([0.5e-9, 1 - 0.5e-9], drawn.size)
    assert low < float((drawn.astype(float) ** 2).sum() / (10.0**2 + 1 / 12)) < high
    shaken = drawn.ravel() + np.random.default_rng(2).uniform(-0.5, 0.5, drawn.size)
    assert kstest(shaken, "norm", args=(0, (100 + 1 / 6) ** 0.5)).pvalue > 1e-6
    correlation = np.corrcoef(drawn.T) - np.eye(9)
    assert np.abs(correlation).max() < 7 / 4000**0.5


# --- the app


def test_under_privacy_the_table_leaves_with_its_noise_is_charged_and_nothing_else_leaves(clients: Clients) -> None:
    plan = plan_of(evaluation={**BY_CLASS, "count_noise": 50.0})
    reply = clients.evaluate(plan, 2, client="1")
    classes = len(plan.data.card.classes) if plan.data.card else 0
    exact = count_by_class(
        workplace(write_plan(plan)).model, model_of(plan), clients.held["1"], classes=classes, batch_size=512
    )
    noise = ReproducibleNoise(derive_key(plan.seed, "counts", "1", 2)).grid_normal((classes, classes), 50.0)
    assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
    assert set(metrics_of(reply)) == {EPSILON}
    assert np.array_equal(reply.content.array_records[ARRAYS][CONFUSION].numpy(), exact + np.asarray(noise))
    assert clients.charged("1") == {NoisyTable(noise=50.0): 1}
    assert clients.events == ["reserve", "read"]  # in this order


def test_a_request_that_is_made_again_gets_the_same_noise_and_costs_nothing(clients: Clients) -> None:
    plan = plan_of(evaluation=BY_CLASS, privacy={"noise": "secret"})
    first, again = (clients.evaluate(plan, 1, client="0").content for _ in range(2))
    tables = [reply.array_records[ARRAYS][CONFUSION].numpy() for reply in (first, again)]
    assert np.array_equal(*tables)
    assert clients.charged("0") == {plan.evaluate_release(): 1}


def test_a_persons_records_are_in_the_price(clients: Clients) -> None:
    people = plan_of(evaluation=BY_CLASS, data={"person_column": "who", "max_rows_per_person": 3})
    clients.evaluate(people)
    assert clients.charged() == {NoisyTable(noise=10.0, records_per_unit=3): 1}


def test_without_privacy_the_table_is_exact_and_entrusted(clients: Clients) -> None:
    plan = plan_of(private=False, evaluation=BY_CLASS)
    reply = clients.evaluate(plan, client="1")
    assert set(reply.content) == {ARRAYS, LEDGER}
    assert reply.content.array_records[ARRAYS][CONFUSION].numpy().sum() == len(clients.held["1"])
    assert clients.charged("1") == {}


# --- egress


def good(plan: Any, **arrays: Any) -> RecordDict:
    classes = len(plan.data.card.classes)
    held = arrays or {CONFUSION: np.zeros((classes, classes), dtype=np.int64)}
    content = RecordDict({ARRAYS: ArrayRecord({name: Array(value) for name, value in held.items()})})
    if plan.is_private:
        content[METRICS] = MetricRecord({EPSILON: 0.5})
    content[LEDGER] = ConfigRecord({HEAD_POSITION: 3, HEAD_HASH: "0" * 64})
    return content


def classes_of(plan: Any, reply: RecordDict) -> dict[str, str]:
    found = classify(reply, phase="evaluate", plan=plan, policy=simulated_policy(plan, "0"), layout=layout_of(plan))
    return {name: str(kind.value) for name, kind in found.items()}


@pytest.mark.parametrize(("private", "kind"), [(True, "charged"), (False, "entrusted")])
def test_every_field_has_its_class(private: bool, kind: str) -> None:
    plan = plan_of(private=private, evaluation=BY_CLASS)
    found = classes_of(plan, good(plan))
    assert found.pop("arrays.confusion") == kind
    assert set(found.values()) == {"public"}
    told = planned_fields(plan, simulated_policy(plan, "0"))
    assert str(told["arrays.confusion"].value) == kind
    assert f"{METRICS}.{CORRECT}" not in told


@pytest.mark.parametrize(
    "wrong",
    [
        {CONFUSION: np.zeros((3, 3), dtype=np.int32)},
        {CONFUSION: np.zeros((3, 3), dtype=np.float64)},
        {CONFUSION: np.zeros(9, dtype=np.int64)},
        {CONFUSION: np.zeros((2, 2), dtype=np.int64)},
        {CONFUSION: np.zeros((3, 3), dtype=np.int64), "more": np.zeros(1, dtype=np.int64)},
        {"other": np.zeros((3, 3), dtype=np.int64)},
    ],
)
def test_a_table_of_another_form_must_not_leave(wrong: dict[str, Any]) -> None:
    plan = plan_of(evaluation=BY_CLASS)
    with pytest.raises(EgressError):
        classes_of(plan, good(plan, **wrong))


def test_neither_form_of_counts_may_leave_as_the_other() -> None:
    plan, other = plan_of(evaluation=BY_CLASS), plan_of(evaluation=AT_CLIENTS)
    with pytest.raises(EgressError):
        classes_of(other, good(plan))
    both = good(plan)
    both[METRICS] = MetricRecord({EPSILON: 0.5, CORRECT: 3})
    with pytest.raises(EgressError):
        classes_of(plan, both)


def test_noise_is_never_skipped(clients: Clients, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table goes through the noise, whatever the records are: seen by who calls it."""
    from client import app

    seen: list[tuple[NoisyTable, NoiseSource]] = []

    def spy(table: np.ndarray, release: NoisyTable, source: NoiseSource) -> np.ndarray:
        seen.append((release, source))
        return noisy_table(table, release, source)

    monkeypatch.setattr(app, "noisy_table", spy)
    plan = plan_of(evaluation=BY_CLASS)
    for client in ("0", "1"):
        clients.evaluate(plan, client=client)
    assert [release for release, _ in seen] == [plan.evaluate_release()] * 2
    draws = [source.grid_normal((4,), 10.0) for _, source in seen]
    assert not np.array_equal(np.asarray(draws[0]), np.asarray(draws[1]))
