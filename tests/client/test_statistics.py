"""Statistics at a client: what leaves is noisy counts and nothing else, once, whatever its records hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from client import app as app_module
from client.datasets.records import Records
from client.egress import EgressError, classify
from client.policy import ReleasePolicy, SitePolicy, simulated_policy
from client.statistics import LARGEST_COUNT, exact_counts, noisy_counts, shortened_counts
from privacy.mechanisms import DpSgd, NoisyHistograms
from privacy.noise import SecretNoise
from privacy.secure_encoding import decode, encode_gradients
from shared_models.faults import Fault
from shared_models.parameters import Parameters, read_array
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.protocol import ARRAYS, EPSILON, HEAD_HASH, HEAD_POSITION, LEDGER, METRICS, WEIGHT
from shared_models.resolve import resolve
from tests.client.conftest import (
    CARD,
    Clients,
    Silence,
    assert_fault,
    content_of,
    head_of,
    layout_of,
    metrics_of,
    plan_of,
    some_records,
    wire,
)

BINS = 8
SIZE = 2 * (BINS + 1) + 3  # v, w and the classes


def statistics_plan(**changes: Any) -> Plan:
    raw: dict[str, Any] = {
        "data": {"name": "csv", "path": "x.csv", "card": CARD, "partition": {"kind": "iid", "clients": 3}},
        "privacy": {"noise_multiplier": 3.0},
        "statistics": {"bins": BINS},
        "training": {"device": "cpu"},
    }
    for name, section in changes.items():
        raw[name] = {**raw.get(name, {}), **section}
    return resolve(plan_from(raw, where="test"))


PLAN = statistics_plan()


def request(plan: Plan = PLAN, number: int = 1, run: str = "run-1", value: float = 0.0) -> RecordDict:
    start: Parameters = {"counts": np.full(SIZE, value, np.float32)}
    return content_of(plan, number, start, run)


def counts_of(reply: Message) -> npt.NDArray[Any]:
    return read_array(reply.content.array_records[ARRAYS]["counts"], "counts", (SIZE,), "float32")


def test_a_reply_holds_the_counts_and_public_numbers(clients: Clients) -> None:
    reply = clients.ask(PLAN, request())
    assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
    assert list(reply.content.array_records[ARRAYS]) == ["counts"]
    metrics = metrics_of(reply)
    assert dict(metrics) == {WEIGHT: 1, EPSILON: pytest.approx(metrics[EPSILON])}
    assert metrics[EPSILON] == pytest.approx(PLAN.privacy.epsilon, abs=1e-6)
    assert set(head_of(reply)) == {HEAD_POSITION, HEAD_HASH}
    found = counts_of(reply)
    assert (found == np.rint(found)).all()
    assert clients.charged() == {PLAN.train_release(): 1}
    assert clients.kinds() == ["open", "policy", "reserve", "commit"]
    assert clients.events == ["reserve", "read"]  # paid for before it is read, and nothing is trained


def test_but_for_the_noise_they_are_the_counts_of_the_training_records(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "noise_of", lambda *_: Silence(b"x"))
    records = clients.data["1"]
    found = counts_of(clients.ask(PLAN, request(), client="1"))
    assert (found == exact_counts(records, PLAN)).all()
    assert found[-3:].tolist() == [int((records.y == label).sum()) for label in range(3)]
    values = records.x[:, 0].double().numpy()
    missing = records.x[:, 1].numpy() != 0
    assert found[BINS] == missing.sum()
    assert (found[:BINS] == np.histogram(values[~missing], np.linspace(-1, 1, BINS + 1))[0]).all()


HOLDINGS = {
    "none": some_records(0),
    "one": some_records(1),
    "many": some_records(500),
    "all-missing": Records(x=torch.tensor([[0.0, 1, 0, 1]] * 9), y=torch.zeros(9, dtype=torch.int64)),
    "out-of-bounds": Records(x=torch.full((9, 4), 3e38), y=torch.zeros(9, dtype=torch.int64)),
    "infinite": Records.trusted(x=torch.full((9, 4), float("inf")), y=torch.full((9,), 7)),
    "no-number": Records.trusted(x=torch.full((9, 4), float("nan")), y=torch.full((9,), -1)),
}


@pytest.mark.parametrize("holding", HOLDINGS)
def test_rule_5_whatever_a_client_holds_its_reply_has_the_same_form(clients: Clients, holding: str) -> None:
    usual = clients.ask(PLAN, request(), client="0")
    clients.data["1"] = HOLDINGS[holding]
    clients.forget()
    found = clients.ask(PLAN, request(), client="1")
    assert not found.has_error()
    assert {name: sorted(record) for name, record in found.content.items()} == {
        name: sorted(record) for name, record in usual.content.items()
    }
    one, other = (reply.content.array_records[ARRAYS]["counts"] for reply in (usual, found))
    assert (one.dtype, one.shape, one.stype, len(one.data)) == (other.dtype, other.shape, other.stype, len(other.data))
    assert metrics_of(found) == metrics_of(usual)
    assert np.isfinite(counts_of(found)).all()
    assert clients.charged("1") == clients.charged("0")


def test_the_same_request_gets_the_stored_reply_and_costs_nothing_more(clients: Clients) -> None:
    first = clients.ask(PLAN, request())
    clients.data["0"] = some_records(300, seed=9)
    clients.restart()
    again = clients.ask(PLAN, request())
    assert wire(again.content) == wire(first.content)
    assert clients.charged() == {PLAN.train_release(): 1}
    assert "read" not in clients.events


@pytest.mark.parametrize("other", [{"run": "run-2"}, {"value": 1.0}])
def test_who_asks_again_in_other_words_is_refused(clients: Clients, other: dict[str, Any]) -> None:
    """The plan says one release: no budget lets a second one through under it."""
    clients.policy = lambda plan, client: simulated_policy(plan, client).model_copy(
        update={"budget": (simulated_policy(plan, client).budget[0].model_copy(update={"epsilon": 1e6}),)}
    )
    clients.ask(PLAN, request())
    assert_fault(clients.ask(PLAN, request(**other)), Fault.BUDGET_EXHAUSTED)
    assert clients.charged() == {PLAN.train_release(): 1}


def test_there_is_no_second_round_and_no_evaluation(clients: Clients) -> None:
    assert_fault(clients.ask(PLAN, request(number=2)), Fault.PLAN_MISMATCH)
    assert_fault(clients.ask(PLAN, request(), kind="evaluate"), Fault.PLAN_MISMATCH)
    assert clients.charged() == {}


def test_another_plan_asks_in_its_own_name_and_the_lifetime_ledger_adds_up(clients: Clients) -> None:
    """Statistics and the training that uses them charge one budget: the second is admitted for what is left."""
    training = plan_of(privacy={"noise_multiplier": 30.0, "noise": "secret"})

    def policy(plan: Plan, client: str) -> SitePolicy:
        made = simulated_policy(plan, client)
        budget = made.budget[0].model_copy(update={"epsilon": 2.0})
        release = made.release.model_copy(update={"statistics": True})
        return made.model_copy(update={"budget": (budget,), "release": release})

    clients.policy = policy
    assert not clients.ask(PLAN, request()).has_error()
    assert not clients.train(training, 1).has_error()
    assert clients.charged() == Counter({PLAN.train_release(): 1, training.train_release(): 1})
    wider = statistics_plan(statistics={"bins": 9}, privacy={"noise_multiplier": 2.4})
    larger: Parameters = {"counts": np.zeros(SIZE + 2, np.float32)}
    assert_fault(clients.ask(wider, content_of(wider, 1, larger)), Fault.BUDGET_EXHAUSTED)
    assert wider.privacy.epsilon is not None
    assert wider.privacy.epsilon < 2.0  # alone it were within the budget


def test_a_site_that_lets_no_statistics_out_refuses_before_it_pays(clients: Clients) -> None:
    def policy(plan: Plan, client: str) -> SitePolicy:
        return simulated_policy(plan, client).model_copy(update={"release": ReleasePolicy(counts=True)})

    clients.policy = policy
    assert_fault(clients.ask(PLAN, request()), Fault.POLICY_FIELD)
    assert clients.charged() == {}
    assert "read" not in clients.events


def test_statistics_are_the_policys_own_word_whatever_networks_it_allows() -> None:
    made = simulated_policy(PLAN, "0")
    none = made.model_copy(update={"allow": made.allow.model_copy(update={"models": ()})})
    assert none.refusal(PLAN) is None
    assert none.refusal(plan_of()) is Fault.POLICY_MODEL
    noisier = made.model_copy(update={"allow": made.allow.model_copy(update={"least_noise_multiplier": 3.1})})
    assert noisier.refusal(PLAN) is Fault.POLICY_NOISE


def test_policies_from_before_keep_their_digest() -> None:
    policy = SitePolicy(site="a", budget_scope="b")
    assert "statistics" not in policy.to_json()["release"]
    allowing = policy.model_copy(update={"release": ReleasePolicy(statistics=True)})
    assert allowing.to_json()["release"]["statistics"] is True
    assert allowing.digest() != policy.digest()


# --- the egress guard ----------------------------------------------------------------------------------------------


def good_reply() -> RecordDict:
    values = np.zeros(SIZE, np.float32)
    return RecordDict(
        {
            ARRAYS: ArrayRecord({"counts": Array(values)}),
            METRICS: MetricRecord({WEIGHT: 1, EPSILON: 0.5}),
            LEDGER: head(),
        }
    )


def head() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord({HEAD_POSITION: 1, HEAD_HASH: "0" * 64})


def classified(reply: RecordDict, policy: SitePolicy | None = None) -> dict[str, Any]:
    return dict(
        classify(
            reply,
            phase="train",
            plan=PLAN,
            policy=policy or simulated_policy(PLAN, "0"),
            layout=layout_of(PLAN),
        )
    )


def test_the_counts_are_charged_and_the_rest_is_public() -> None:
    assert classified(good_reply()) == {
        "arrays.counts": "charged",
        "metrics.num-examples": "public",
        "metrics.epsilon": "public",
        "ledger.position": "public",
        "ledger.hash": "public",
    }


def spoilt(what: str) -> RecordDict:
    reply = good_reply()
    values = np.zeros(SIZE, np.float32)
    if what == "another field":
        reply[METRICS]["records"] = 7
    elif what == "another array":
        reply[ARRAYS]["exact"] = Array(values)
    elif what == "another record":
        reply["more"] = MetricRecord({"mean": 1.0})
    elif what == "a weight":
        reply[METRICS][WEIGHT] = 8
    elif what == "no whole number":
        values[3] = 0.5  # noise that is on no grid
        reply[ARRAYS] = ArrayRecord({"counts": Array(values)})
    elif what == "no number":
        values[3] = np.nan
        reply[ARRAYS] = ArrayRecord({"counts": Array(values)})
    elif what == "another length":
        reply[ARRAYS] = ArrayRecord({"counts": Array(np.zeros(SIZE + 1, np.float32))})
    elif what == "another type":
        reply[ARRAYS] = ArrayRecord({"counts": Array(values.astype(np.float64))})
    return reply


@pytest.mark.parametrize(
    "what",
    [
        "another field",
        "another array",
        "another record",
        "a weight",
        "no whole number",
        "no number",
        "another length",
        "another type",
    ],
)
def test_anything_else_stops_the_reply(what: str) -> None:
    with pytest.raises(EgressError):
        classified(spoilt(what))


def test_a_policy_that_forbids_them_stops_counts_that_were_made() -> None:
    with pytest.raises(EgressError, match="lets no statistics out"):
        classified(
            good_reply(),
            simulated_policy(PLAN, "0").model_copy(update={"release": ReleasePolicy()}),
        )


# --- the noise -----------------------------------------------------------------------------------------------------


def test_the_noise_is_what_is_charged() -> None:
    """Mean and deviation of 21 x 4,000 draws: within 6 standard errors, so a false alarm below 1e-8 in all."""
    release = PLAN.train_release()
    assert isinstance(release, NoisyHistograms)
    assert release.noise == pytest.approx(3.0 * 3**0.5)
    counts, noise = exact_counts(some_records(50), PLAN), SecretNoise()
    drawn = np.stack([noisy_counts(counts, release, noise) for _ in range(4_000)]) - counts
    n, deviation = drawn.size, (release.noise**2 + 1 / 12) ** 0.5
    assert abs(drawn.mean()) < 6 * deviation / n**0.5
    assert abs(drawn.std() / deviation - 1) < 6 / (2 * n) ** 0.5
    # Each count has its own: correlations of independent normals over 4,000 draws are normal with deviation 1/63.
    correlations = np.corrcoef(drawn, rowvar=False)[np.triu_indices(SIZE, 1)]
    assert np.abs(correlations).max() < 7 / 4_000**0.5


def test_counts_that_float32_would_round_are_cut() -> None:
    release = NoisyHistograms(noise_multiplier=1e-3, columns=1)
    counts = np.array([1 << 40, -(1 << 40), 5])
    assert noisy_counts(counts, release, SecretNoise()).tolist() == [LARGEST_COUNT, -LARGEST_COUNT, 5]


def test_of_a_secure_sum_a_record_moves_at_most_what_the_grid_is_made_for() -> None:
    """Rules 9 and 10, brute force over single records that come and go: the whole numbers that go into the sum."""
    plan = statistics_plan(
        privacy={"trust": "distributed"}, data={"partition": {"kind": "iid", "clients": 4}}, secure_sum={"masks": False}
    )
    grid, bits = plan.sum_grid(), plan.secure.bits
    assert bits is not None
    release = plan.train_release()
    records, more = some_records(40), some_records(30, seed=4)
    whole = []
    for rows in (records, *(joined(records, more, n) for n in range(30))):
        words = encode_gradients(
            shortened_counts(exact_counts(rows, plan), plan),
            grid,  # type: ignore[arg-type]  # records are summed
            bits=bits,
            noise=Silence(b"x"),
        )
        whole.append(words.view(np.int32 if bits == 32 else np.int64).astype(np.float64))
        back = decode(words, grid, survivors=1, size=SIZE) * np.float32(3**0.5)
        assert np.abs(back - exact_counts(rows, plan)).max() < 2 * grid.step
    moved = max(float(np.linalg.norm(after - whole[0])) for after in whole[1:])
    assert moved <= release.l2_sensitivity  # type: ignore[union-attr]
    assert moved * grid.step == pytest.approx(1.0, rel=1e-2)


def joined(records: Records, more: Records, n: int) -> Records:
    one = more.take([n])
    return replace(records, x=torch.cat([records.x, one.x]), y=torch.cat([records.y, one.y]))


def test_training_charges_as_before(clients: Clients) -> None:
    assert isinstance(plan_of().train_release(), DpSgd)
    assert not clients.train(plan_of()).has_error()


def test_no_value_of_a_record_is_in_a_log(clients: Clients, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    clients.error = RuntimeError("patient-4711 has 37.5")
    assert_fault(clients.ask(PLAN, request()), Fault.CLIENT_FAILED)
    assert "4711" not in caplog.text
    assert clients.charged() == {PLAN.train_release(): 1}  # what was reserved stays charged
