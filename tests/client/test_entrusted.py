"""A client of a server that adds the noise: pays for a run at once, sends a clipped update, entrusts it by name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from client.entrusted import clipped_change
from client.policy import Allow, Budget, ReleasePolicy, SitePolicy, simulated_policy
from client.trainer import train_plain
from client.workplace import workplace
from privacy.ledger import Entry, Ledger
from shared_models.faults import Fault
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.protocol import ARRAYS, CONFIG, EPSILON, LEDGER, METRICS, WEIGHT
from tests.client.conftest import (
    Clients,
    assert_fault,
    content_of,
    metrics_of,
    model_of,
    plan_of,
    some_records,
    update_of,
)

POISSON = {"sampling": "poisson", "rate": 0.5}
PRIVACY = {"unit": "client", "trust": "central", "epsilon": 4.0, "noise_multiplier": None, "clipping_norm": 0.1}


def central(cohort: dict[str, Any] | None = None, **changes: Any) -> Plan:
    changes["privacy"] = {**PRIVACY, **changes.get("privacy", {})}
    changes["federation"] = {"cohort": POISSON if cohort is None else cohort, **changes.get("federation", {})}
    return plan_of(**changes)


def enrol(clients: Clients, plan: Plan, run: str = "run-1", following: int = 1) -> Message:
    content = content_of(plan, following, run=run)
    return clients.ask(plan, RecordDict({CONFIG: content[CONFIG]}), kind="query.enrol")


def charges(entries: list[Entry]) -> list[int]:
    """Rounds that each reservation pays for."""
    return [
        0 if entry.body["charge"] is None else sum(count for _, count in entry.body["charge"]["releases"])
        for entry in entries
        if entry.kind == "reserve"
    ]


def norm(update: Parameters) -> float:
    return math.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in update.values()))


# --- what is sent -------------------------------------------------------------------------------------------------


def test_the_update_is_what_training_changes_clipped(clients: Clients) -> None:
    plan = central(training={"learning_rate": 2.0})
    sent = update_of(plan, clients.train(plan))
    place = workplace(write_plan(plan))
    change, _ = train_plain(place.model, model_of(plan), clients.data["0"], plan, round_number=1, client="0")
    assert norm(change) > 0.1
    assert norm(sent) == pytest.approx(0.1, rel=1e-6)
    for name, value in change.items():
        assert np.allclose(sent[name], value * (0.1 / norm(change)), atol=1e-8)


def test_rule_5_a_client_without_records_or_whose_training_diverges_sends_zeros(clients: Clients) -> None:
    plan = central(training={"learning_rate": 1e30})
    clients.data["1"] = some_records(0)
    for client in ("0", "1"):
        reply = clients.train(plan, client=client)
        assert not any(value.any() for value in update_of(plan, reply).values())
        assert metrics_of(reply).keys() == {WEIGHT, EPSILON}


def test_no_loss_and_no_count_leaves(clients: Clients) -> None:
    plan = central()
    reply = clients.train(plan)
    assert set(reply.content) == {ARRAYS, METRICS, LEDGER}
    assert metrics_of(reply).keys() == {WEIGHT, EPSILON}
    assert metrics_of(reply)[WEIGHT] == 1


FLOATS = st_numpy.arrays(np.float32, 5, elements=st.floats(width=32))


@given(FLOATS, st.sampled_from([1e-9, 0.5, 1e9]))
def test_whatever_training_made_is_clipped_or_zeros(values: np.ndarray, most: float) -> None:
    found = clipped_change({"a": values[:2], "b": values[2:]}, most)
    assert norm(found) <= most * (1 + 1e-6)
    if not np.isfinite(values).all():
        assert norm(found) == 0


# --- who pays -----------------------------------------------------------------------------------------------------


def test_rule_3_a_run_is_paid_for_at_once_and_its_rounds_cost_nothing_more(clients: Clients) -> None:
    plan = central()
    release = plan.train_release()
    spent = metrics_of(enrol(clients, plan))[EPSILON]
    assert "read" not in clients.events
    assert clients.charged() == Counter({release: 3})
    for number in (1, 2, 3):
        assert metrics_of(clients.train(plan, number))[EPSILON] == spent
    assert clients.charged() == Counter({release: 3})
    assert charges(clients.entries()) == [3, 0, 0, 0]
    assert spent <= 4.0


def test_who_was_not_enrolled_pays_for_the_whole_run_when_first_asked(clients: Clients) -> None:
    plan = central()
    clients.train(plan, 2)
    assert clients.charged() == Counter({plan.train_release(): 3})
    assert clients.events.index("reserve") < clients.events.index("read")
    assert charges(clients.entries()) == [3, 0]


def test_where_everybody_takes_part_each_round_is_paid_for(clients: Clients) -> None:
    plan = central({"sampling": "all"})
    clients.train(plan, 1)
    clients.train(plan, 2)
    assert charges(clients.entries()) == [1, 1]
    assert_fault(enrol(clients, plan), Fault.PLAN_MISMATCH)


def test_to_enrol_again_costs_nothing_and_says_the_same(clients: Clients) -> None:
    plan = central()
    first = enrol(clients, plan)
    clients.restart()
    again = enrol(clients, plan)
    assert (metrics_of(first), first.content[LEDGER]) == (metrics_of(again), again.content[LEDGER])
    assert charges(clients.entries()) == [3]


def test_another_run_of_the_same_plan_is_not_free(clients: Clients) -> None:
    plan = central()
    enrol(clients, plan)
    assert_fault(enrol(clients, plan, run="run-2"), Fault.BUDGET_EXHAUSTED)
    content = content_of(plan, run="run-2")
    assert_fault(clients.ask(plan, content), Fault.BUDGET_EXHAUSTED)
    assert "read" not in clients.events


def test_a_budget_that_does_not_cover_the_whole_plan_covers_none_of_it(clients: Clients) -> None:
    plan = central(privacy={"budget": 3.9})
    assert_fault(enrol(clients, plan), Fault.BUDGET_EXHAUSTED)
    assert_fault(clients.train(plan), Fault.BUDGET_EXHAUSTED)
    assert (clients.charged(), "read" in clients.events) == (Counter(), False)


def test_a_replayed_round_gets_the_same_bytes(clients: Clients) -> None:
    plan = central()
    first = clients.train(plan)
    clients.restart()
    clients.events.clear()
    again = clients.train(plan)
    assert update_of(plan, first).keys() == update_of(plan, again).keys()
    assert all(
        np.array_equal(a, b) for a, b in zip(*(update_of(plan, m).values() for m in (first, again)), strict=True)
    )
    assert "reserve" in clients.events
    assert "read" not in clients.events


def test_rule_3_no_round_is_answered_twice_or_after_a_later_one(clients: Clients) -> None:
    """The run pays for each round once: a server that goes on from an old copy would release a round again."""
    plan = central()
    clients.train(plan, 2)
    for number, other in ((2, 0.5), (1, 0.0)):
        content = content_of(plan, number, model={name: value + other for name, value in model_of(plan).items()})
        assert_fault(clients.ask(plan, content), Fault.ROUND_REPEATED)
    assert clients.train(plan, 2).has_content()  # the same words, the same answer
    clients.train(plan, 3)
    assert_fault(clients.train(plan, 2), Fault.ROUND_REPEATED)  # even in the same words
    assert [entry.kind for entry in clients.entries()].count("commit") == 2
    assert [entry.body["reason"] for entry in clients.entries() if entry.kind == "refuse"] == ["round-repeated"] * 3


def test_the_refusal_is_in_the_ledger_where_rounds_a_day_are_counted_too(clients: Clients) -> None:
    plan = central()
    clients.policy = lambda plan, _: policy(plan, rounds_a_day=9)
    clients.train(plan, 2)
    assert_fault(clients.train(plan, 1), Fault.ROUND_REPEATED)
    assert [entry.body["reason"] for entry in clients.entries() if entry.kind == "refuse"] == ["round-repeated"]
    assert charges(clients.entries()) == [3, 0]


def test_no_other_process_can_begin_a_round_between_the_look_and_the_reservation(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, inside = central(), [False]
    batch, look = Ledger.batch, Ledger.rounds_of

    @contextmanager
    def watched(ledger: Ledger) -> Iterator[Ledger]:
        with batch(ledger) as found:
            inside[0] = True
            yield found
        inside[0] = False

    def looked(ledger: Ledger, *given: Any, **how: Any) -> Any:
        assert inside[0]
        seen.append(True)
        return look(ledger, *given, **how)

    seen: list[bool] = []
    monkeypatch.setattr(Ledger, "batch", watched)
    monkeypatch.setattr(Ledger, "rounds_of", looked)
    assert clients.train(plan, 1).has_content()
    assert seen == [True]


def test_who_is_told_of_an_old_copy_when_enrolled_again_says_so(clients: Clients) -> None:
    plan = central()
    enrol(clients, plan)
    clients.train(plan, 2)
    assert enrol(clients, plan, following=2).has_content()  # the round was cut off before its release
    assert enrol(clients, plan, following=3).has_content()
    assert_fault(enrol(clients, plan), Fault.ROUND_REPEATED)
    assert charges(clients.entries()) == [3, 0]


# --- whom it is entrusted to --------------------------------------------------------------------------------------


def policy(plan: Plan, *, entrust: tuple[str, ...] | None = None, **allow: Any) -> SitePolicy:
    found = simulated_policy(plan, "0")
    release = ReleasePolicy(entrust=(plan.name,) if entrust is None else entrust)
    return found.model_copy(update={"release": release, "allow": Allow(reproducible_noise=True, **allow)})


def test_a_site_that_entrusts_this_federation_with_nothing_refuses(clients: Clients) -> None:
    plan = central()
    for entrust in ((), ("another",)):
        clients.policy = lambda plan, _, entrust=entrust: policy(plan, entrust=entrust)  # type: ignore[misc]
        assert_fault(enrol(clients, plan), Fault.POLICY_ENTRUST)
        assert_fault(clients.train(plan), Fault.POLICY_ENTRUST)
    assert (clients.charged(), "read" in clients.events) == (Counter(), False)


def test_to_be_entrusted_is_not_enough_without_a_budget_of_that_kind(clients: Clients) -> None:
    plan = central()
    other = Budget(unit="client", trust="distributed", epsilon=8.0, delta=1e-5)
    clients.policy = lambda plan, _: policy(plan).model_copy(update={"budget": (other,)})
    assert_fault(clients.train(plan), Fault.POLICY_UNIT)


def test_the_ledger_says_that_the_update_was_entrusted(clients: Clients) -> None:
    plan = central()
    enrol(clients, plan)
    clients.train(plan)
    fields = [entry.body["fields"] for entry in clients.entries() if entry.kind == "commit"]
    assert fields[0] == {"metrics.epsilon": "public", "ledger.position": "public", "ledger.hash": "public"}
    assert fields[1] == fields[0] | {"arrays": "entrusted", "metrics.num-examples": "public"}


def test_to_enrol_is_no_round_of_the_day(clients: Clients) -> None:
    plan = central()
    clients.policy = lambda plan, _: policy(plan, rounds_a_day=1)
    enrol(clients, plan)
    assert clients.train(plan, 1).has_content()
    assert_fault(clients.train(plan, 2), Fault.POLICY_RATE)


# --- correlated noise: a run is one release -----------------------------------------------------------------------


def correlated() -> Plan:
    return central(
        {"sampling": "fixed", "size": 1},
        privacy={"correlated": {"band": 2}},
        federation={"rounds": 3},
    )


def test_a_run_with_correlated_noise_is_paid_for_once_and_whole(clients: Clients) -> None:
    plan = correlated()
    release = plan.train_release()
    assert release is not None
    spent = metrics_of(enrol(clients, plan))[EPSILON]
    assert "read" not in clients.events
    for number in (1, 3):
        assert metrics_of(clients.train(plan, number))[EPSILON] == spent
    assert clients.charged() == Counter({release: 1})
    assert charges(clients.entries()) == [1, 0, 0]
    assert spent <= 4.0


def test_who_was_not_enrolled_pays_for_it_when_first_asked(clients: Clients) -> None:
    plan = correlated()
    release = plan.train_release()
    assert release is not None
    clients.train(plan, 2)
    clients.train(plan, 2)
    assert clients.events.index("reserve") < clients.events.index("read")
    assert clients.charged() == Counter({release: 1})


def test_what_leaves_under_correlated_noise_is_a_clipped_update_entrusted(clients: Clients) -> None:
    plan = correlated()
    assert norm(update_of(plan, clients.train(plan))) <= 0.1 * (1 + 1e-6)
