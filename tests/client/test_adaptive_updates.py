"""A clipping norm that adapts, at a client: the norm is checked, and one vector leaves, of update and bit together."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from client.egress import Disclosure, EgressError, classify
from client.policy import simulated_policy
from client.trainer import train_plain
from client.workplace import workplace
from privacy.adaptive_clipping import joint
from privacy.noise import ReproducibleNoise
from privacy.secure_encoding import encode
from shared_models.faults import Fault
from shared_models.parameters import in_order
from shared_models.plan import Plan
from shared_models.plan_adaptive import split_of
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CLIPPING_NORM, CONFIG, EPSILON, JOINT, LEDGER, METRICS, WEIGHT
from shared_models.seeds import derive_key
from tests.client.conftest import (
    Clients,
    assert_fault,
    content_of,
    layout_of,
    metrics_of,
    model_of,
    plan_of,
    some_records,
)
from tests.client.secure_cohort import Sum, secure_plan

NAMES = ("0", "1", "2", "3", "4")
PRIVACY: dict[str, Any] = {
    "unit": "client",
    "trust": "central",
    "epsilon": 4.0,
    "noise_multiplier": None,
    "clipping_norm": 0.1,
    "adaptive": {"least_norm": 0.01, "most_norm": 10.0},
}


def central(**changes: Any) -> Plan:
    return plan_of(**{"federation": {"cohort": {"sampling": "all"}}, "privacy": PRIVACY, **changes})


def train(clients: Clients, plan: Plan, norm: object, number: int = 1, **how: Any) -> Message:
    content = content_of(plan, number)
    if norm is not None:
        content.config_records[CONFIG][CLIPPING_NORM] = norm  # type: ignore[assignment]  # that is what is tried
    return clients.ask(plan, content, **how)


def vector_of(reply: Message) -> np.ndarray:
    return reply.content.array_records[ARRAYS][JOINT].numpy()


def change_of(clients: Clients, plan: Plan, number: int = 1) -> np.ndarray:
    place = workplace(write_plan(plan))
    change, _ = train_plain(place.model, model_of(plan), clients.data["0"], plan, round_number=number, client="0")
    return np.concatenate([value.ravel() for _, value in in_order(change, place.layout)])


# --- a trusted server ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "short"), [(2.0, False), (1e-3, True)])
def test_what_leaves_is_the_clipped_change_and_the_bit_in_one_vector(
    clients: Clients, rate: float, short: bool
) -> None:
    plan = central(training={"learning_rate": rate})
    reply = train(clients, plan, 0.1)
    vector, change, split = vector_of(reply), change_of(clients, plan), split_of(plan)
    assert vector.dtype == np.float32
    assert np.allclose(vector, joint(change, 0.1, split), atol=1e-7)
    assert math.copysign(1, vector[-1]) == (1 if short else -1)
    assert (np.linalg.norm(change) <= 0.1) == short
    assert np.linalg.norm(vector) <= 1 + 1e-6
    assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
    assert metrics_of(reply).keys() == {WEIGHT, EPSILON}


def test_in_later_rounds_it_is_clipped_to_the_norm_that_the_server_names(clients: Clients) -> None:
    plan = central(training={"learning_rate": 2.0})
    vector = vector_of(train(clients, plan, 0.7, number=2))
    assert np.allclose(vector, joint(change_of(clients, plan, 2), 0.7, split_of(plan)), atol=1e-7)


def test_rule_5_a_client_without_records_or_whose_training_diverges_gives_zeros_bit_included(clients: Clients) -> None:
    plan = central(training={"learning_rate": 1e30})
    clients.data["1"] = some_records(0)
    for client in ("0", "1"):
        reply = train(clients, plan, 0.1, client=client)
        assert not vector_of(reply).any()
        assert metrics_of(reply).keys() == {WEIGHT, EPSILON}


@pytest.mark.parametrize(
    ("norm", "number"),
    [
        (None, 1),
        (0.2, 1),
        (0.009, 2),
        (10.1, 2),
        (math.nan, 2),
        (math.inf, 2),
        (-0.1, 2),
        (1, 2),
        ("0.1", 2),
        ([0.1], 2),
    ],
)
def test_a_norm_that_the_plan_does_not_allow_is_refused_before_anything_is_paid_or_read(
    clients: Clients, norm: object, number: int
) -> None:
    plan = central()
    assert_fault(train(clients, plan, norm, number), Fault.PLAN_MISMATCH)
    assert clients.charged() == Counter()
    assert "read" not in clients.events


def test_a_round_costs_what_one_with_a_fixed_norm_costs(clients: Clients) -> None:
    plan = central()
    release = plan.train_release()
    train(clients, plan, 0.1)
    train(clients, plan, 0.12, 2)
    assert clients.charged() == Counter({release: 2})


def test_a_plan_with_a_fixed_norm_hears_no_norm(clients: Clients) -> None:
    plan = central(privacy={**PRIVACY, "adaptive": None})
    reply = train(clients, plan, 5.0)
    assert JOINT not in reply.content.array_records[ARRAYS]


def test_the_vector_is_entrusted_and_nothing_of_another_form_leaves(clients: Clients) -> None:
    plan = central()
    reply = train(clients, plan, 0.1).content
    given = {"phase": "train", "plan": plan, "policy": simulated_policy(plan, "0"), "layout": layout_of(plan)}
    assert classify(reply, **given)[f"{ARRAYS}.{JOINT}"] is Disclosure.ENTRUSTED
    size = layout_of(plan).size
    for array in (np.zeros(size, np.float32), np.zeros(size + 1, np.float64), np.zeros((size + 1, 1), np.float32)):
        wrong = RecordDict({**reply, ARRAYS: ArrayRecord({JOINT: Array(array)})})
        with pytest.raises(EgressError, match="no update with its bit"):
            classify(wrong, **given)
    more = RecordDict({**reply, METRICS: MetricRecord({**metrics_of(Message(reply, 1, "train")), "bit": 1})})
    with pytest.raises(EgressError, match=r"metrics\.bit"):
        classify(more, **given)


# --- sums of clients ----------------------------------------------------------------------------------------------


def distributed() -> Plan:
    private = {"clipping_norm": 0.1, "adaptive": {"least_norm": 0.01, "most_norm": 10.0, "count_noise": 5.0}}
    return secure_plan(5, private, training={"learning_rate": 2.0}, federation={"rounds": 3})


def sum_of(clients: Clients, plan: Plan, **how: Any) -> Sum:
    states: dict[str, RecordDict] = {}

    def ask(name: str, kind: str, content: RecordDict) -> Message:
        return clients.ask(plan, content, client=name, kind=kind, state=states.setdefault(name, RecordDict()))

    clients.data = {name: some_records(6 + i, seed=i) for i, name in enumerate(NAMES)}
    return Sum(plan, ask, {name: clients.books.owner(name).public_hex for name in NAMES}, **how)


def test_under_masks_the_sum_is_of_vectors_with_their_bits(clients: Clients) -> None:
    plan = distributed()
    found = sum_of(clients, plan, norm=0.1).result()
    place, total = workplace(write_plan(plan)), np.zeros(place_size(plan), np.uint32)
    for name in NAMES:
        change, _ = train_plain(place.model, model_of(plan), clients.data[name], plan, round_number=1, client=name)
        row = np.concatenate([value.ravel() for _, value in in_order(change, place.layout)])
        vector = joint(row, 0.1, split_of(plan)).astype(np.float32)
        noise = ReproducibleNoise(derive_key(plan.seed, "noise", name, 1))
        assert plan.secure.bits == 32
        total += encode(vector, plan.sum_grid(), bits=32, noise=noise).astype(np.uint32)
    assert np.array_equal(found, total)
    release = plan.train_release()
    assert release is not None
    assert all(clients.charged(name) == Counter({release: 1}) for name in NAMES)


def place_size(plan: Plan) -> int:
    return layout_of(plan).size + 1


def test_another_norm_than_the_one_that_was_named_is_another_attempt(clients: Clients) -> None:
    """Clients that were told of different norms could be told apart: the norm is bound as the model is."""
    plan = distributed()
    asked = sum_of(clients, plan, round=2, norm=0.5)
    inboxes = asked.shares()
    for name, norm, fault in (("0", 0.6, Fault.SECURE_SUM_REFUSED), ("1", 11.0, Fault.PLAN_MISMATCH)):
        assert_fault(asked.say("train", name, inboxes[name], **{CLIPPING_NORM: norm}), fault)
        assert clients.charged(name) == Counter()
