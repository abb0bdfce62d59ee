"""The guard: paid for before data is touched, never taken back, answered once, shut where the books can't be read."""

from __future__ import annotations

import logging
import os
import random
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client import private_trainer
from client.books import Books, create_simulated, register
from client.guard import Guard, RefusedError, Request
from client.policy import Allow, Budget, ReleasePolicy, SitePolicy, simulated_policy
from privacy.accountant import epsilon
from privacy.ledger import Ledger, LedgerError, Reason
from privacy.lifetime import Balance
from privacy.mechanisms import Release
from privacy.statement import verify_statement
from shared_models.faults import Fault
from shared_models.parameters import Layout
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    CORRECT,
    EPSILON,
    HEAD_HASH,
    HEAD_POSITION,
    LEDGER,
    METRICS,
    STATEMENT,
    STATEMENT_TEXT,
    TOTAL,
    TRAIN_LOSS,
    WEIGHT,
)
from tests.client.conftest import (
    AT_CLIENTS,
    SECRET,
    Clients,
    assert_fault,
    changed_by_a_bit,
    content_of,
    head_of,
    metrics_of,
    model_of,
    plan_of,
    question,
    some_records,
    wire,
)

LAYOUT = Layout((("w", (2,)),), "float32")


# --- a guard by itself ---------------------------------------------------------------------------------------------


def public_plan(rounds: int = 10, **changes: Any) -> Plan:
    """A resolved plan of full batches, which the accountant prices at once."""
    privacy = {"noise_multiplier": 8.0, "epsilon": 100.0, "calibrated_from": "noise_multiplier"}
    sections: dict[str, Any] = {
        "training": {"sample_rate": 1.0, "steps": 2},
        "privacy": privacy,
        "federation": {"rounds": rounds},
    }
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section} if isinstance(section, dict) else section
    return Plan.model_validate(sections)


def cost(plan: Plan, rounds: int) -> float:
    """Epsilon of the first rounds, judgements included."""
    total: Counter[Release] = Counter()
    for releases in plan.terms().rounds[:rounds]:
        total.update(dict(releases))
    return epsilon(total, plan.privacy.delta).epsilon


def site(plan: Plan, limit: float | None = None, **more: Any) -> SitePolicy:
    """A site with one budget that allows everything."""
    budget = Budget(
        unit=plan.balance.unit,  # type: ignore[arg-type]
        trust="local",
        epsilon=100.0 if limit is None else limit,
        delta=plan.privacy.delta,
    )
    given: dict[str, Any] = {
        "site": "berlin",
        "budget_scope": "people",
        "budget": (budget,) if plan.is_private else (),
        "release": ReleasePolicy(entrust=(plan.name,), counts=True, statement="full"),
        **more,
    }
    return SitePolicy(**given)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


class Site:
    """A site's books, and guards over them."""

    def __init__(self, path: Path) -> None:
        self.path, self.clock = path, Clock()
        create_simulated(path)
        self.books = self.process()

    def process(self) -> Books:
        """The books as another process opens them."""
        secret = self.path.with_name(self.path.name + ".owners").read_bytes()
        return Books(Ledger.open(self.path, durable=False, clock=self.clock), secret)

    def guard(self, plan: Plan, policy: SitePolicy | None = None, books: Books | None = None) -> Guard:
        return Guard(
            plan=plan,
            policy=site(plan) if policy is None else policy,
            books=self.books if books is None else books,
            client="berlin",
            layout=LAYOUT,
        )

    def play(self, plan: Plan, number: int, policy: SitePolicy | None = None, **which: Any) -> RecordDict | Fault:
        """One task from request to reply; or why not."""
        guard = self.guard(plan, policy)
        try:
            stored = guard.admit(ask(number, **which))
        except RefusedError as refused:
            return refused.fault
        return stored if stored is not None else guard.release(answer(plan, guard, which.get("phase", "train")))

    @property
    def kinds(self) -> list[str]:
        return [str(entry.body.get("reason", entry.kind)) for entry in self.books.ledger.entries("people")]

    def charged(self, unit: str = "record") -> int:
        account = self.books.ledger.account("people", Balance(unit=unit, trust="local"))
        return sum(count for plan in account.plans for _, count in plan.charged)


def ask(number: int = 1, *, phase: Any = "train", run: str = "run", salt: int = 0) -> Request:
    return Request(run=run, round=number, phase=phase, digest=f"{number:030x}{phase == 'train':04x}{salt:030x}")


def answer(plan: Plan, guard: Guard, phase: str = "train", value: float = 0.0) -> RecordDict:
    """What an app would put together."""
    spent = {EPSILON: guard.epsilon()} if plan.is_private else {}
    if phase == "evaluate":
        return RecordDict({METRICS: MetricRecord({CORRECT: int(value), TOTAL: 9, **spent})})
    update = ArrayRecord({"w": Array(np.full(2, value, np.float32))})
    fields: Any = {WEIGHT: 1, **spent} if plan.is_private else {WEIGHT: 1, TRAIN_LOSS: value}
    return RecordDict({ARRAYS: update, METRICS: MetricRecord(fields)})


@pytest.fixture
def berlin(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path / "books.sqlite")
    yield found
    found.books.ledger.close()


def played(outcome: RecordDict | Fault) -> bool:
    return not isinstance(outcome, Fault)


# --- reserve before data is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_principle_5_the_charge_is_on_disk_before_data_is_read(
    clients: Clients, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    release = plan.train_release() if kind == "train" else plan.evaluate_release()
    seen: list[Any] = []
    read = Clients._read

    def looking(self: Clients, data: Any) -> Any:
        seen.append(self.charged())  # as another process sees it: committed, not only written
        return read(self, data)

    monkeypatch.setattr(Clients, "_read", looking)
    clients.ask(plan, content_of(plan), kind=kind)
    assert seen == [{release: 1}]


def test_principle_5_data_that_can_not_be_read_is_charged_and_its_claim_withdrawn(clients: Clients) -> None:
    plan = plan_of()
    clients.error = OSError(SECRET)
    assert_fault(clients.train(plan), Fault.CLIENT_FAILED)
    assert clients.events == ["reserve", "read"]
    assert clients.kinds() == ["open", "policy", "reserve", "client-failed"]
    assert clients.charged() == {plan.train_release(): 1}


def test_principle_5_what_is_interrupted_stays_charged(clients: Clients) -> None:
    plan = plan_of()
    clients.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        clients.train(plan)
    assert clients.kinds() == ["open", "policy", "reserve"]
    clients.error = None
    clients.restart()
    assert not clients.train(plan).has_error()
    assert clients.kinds() == ["open", "policy", "reserve", "commit"]


def test_a_request_that_keeps_failing_is_paid_for_once_and_noted_once(clients: Clients) -> None:
    plan = plan_of()
    clients.error = OSError(SECRET)
    for _ in range(4):
        assert_fault(clients.train(plan), Fault.CLIENT_FAILED)
    assert clients.kinds() == ["open", "policy", "reserve", "client-failed"]


def test_nothing_leaves_that_was_not_admitted(berlin: Site) -> None:
    plan = public_plan()
    guard = berlin.guard(plan)
    with pytest.raises(ValueError, match="nothing was admitted"):
        guard.release(RecordDict())
    guard.failed()  # and nothing to note
    berlin.play(plan, 1)
    replay = berlin.guard(plan)
    assert replay.admit(ask(1)) is not None
    with pytest.raises(ValueError, match="nothing was admitted"):
        replay.release(answer(plan, replay, value=1.0))
    assert berlin.kinds == ["open", "policy", "reserve", "commit"]


def test_a_charge_has_no_way_back() -> None:
    public = {name for name in vars(Guard) if not name.startswith("_")}
    asking = {"check", "foresee", "is_first", "knows", "stored", "took_part"}
    assert (
        public == {"of", "scope", "unprotected", "enrol", "admit", "release", "failed", "epsilon", "statement"} | asking
    )


# --- once answered, always the same answer -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize("noise", ["secret", "reproducible"])
def test_an_answered_request_is_answered_again_byte_by_byte_with_no_data_touched(
    clients: Clients, kind: str, noise: str
) -> None:
    plan = plan_of(evaluation=AT_CLIENTS, privacy={"noise": noise})
    first = clients.ask(plan, content_of(plan), kind=kind)
    charged, entries = clients.charged(), clients.entries()
    clients.error = OSError("data was touched")
    for again in range(3):
        if again:
            clients.restart()
        reply = clients.ask(plan, content_of(plan), kind=kind)
        assert wire(reply.content) == wire(first.content)
    assert "read" not in clients.events
    assert (clients.charged(), clients.entries()) == (charged, entries)


def test_a_request_that_differs_in_one_bit_is_another_task_and_charged(clients: Clients) -> None:
    plan = plan_of()
    first = clients.train(plan)
    other = clients.ask(plan, changed_by_a_bit(content_of(plan)))
    assert not other.has_error()
    assert wire(other.content) != wire(first.content)
    assert clients.charged() == {plan.train_release(): 2}


def test_principle_2_a_server_that_asks_one_round_for_many_models_pays_for_each_until_nothing_is_left(
    clients: Clients,
) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    model = model_of(plan)
    outcomes = []
    for attempt in range(6):  # a probe of its own for each judgement, all in round 1
        probe = {name: value + attempt for name, value in model.items()}
        reply = clients.ask(plan, content_of(plan, 1, probe), kind="evaluate")
        outcomes.append(Fault(reply.error.code) if reply.has_error() else None)
    assert outcomes == [None, None, None, *[Fault.BUDGET_EXHAUSTED] * 3]
    assert clients.charged() == {plan.evaluate_release(): 3}
    assert clients.events.count("evaluate") == 3


def test_only_the_two_newest_answers_of_a_run_are_kept_and_an_older_one_is_not_given_anew(clients: Clients) -> None:
    plan = plan_of()
    replies = [wire(clients.train(plan, number).content) for number in (1, 2, 3)]
    clients.forget()
    assert_fault(clients.train(plan, 1), Fault.REPLY_GONE)
    assert [wire(clients.train(plan, number).content) for number in (2, 3)] == replies[1:]
    assert "read" not in clients.events
    assert clients.charged() == {plan.train_release(): 3}


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_without_privacy_answers_are_not_kept_but_made_again_whole_and_listed_once(clients: Clients, kind: str) -> None:
    plan = plan_of(private=False, evaluation=AT_CLIENTS)
    first = clients.ask(plan, content_of(plan), kind=kind)
    assert clients.entries()[-1].body["kept"] is False  # an unprotected update lies nowhere but where it was sent
    clients.restart()
    again = clients.ask(plan, content_of(plan), kind=kind)
    assert clients.events == ["reserve", "read", kind]
    # What a server takes as a good reply, the ledger's entry included.
    assert set(again.content) == set(first.content)
    for name in set(first.content) - {LEDGER}:
        one, other = (wire(RecordDict({name: reply.content[name]})) for reply in (first, again))
        assert one == other
    head = head_of(again)
    assert head[HEAD_HASH] == clients.entries()[head[HEAD_POSITION]].hash
    assert clients.kinds() == ["open", "policy", "reserve", "commit"]


def test_of_two_processes_with_one_task_both_send_what_was_committed_first(berlin: Site) -> None:
    plan = public_plan()
    one, other = berlin.guard(plan), berlin.guard(plan, books=berlin.process())
    assert one.admit(ask()) is None
    assert other.admit(ask()) is None  # nothing has left yet: it may run again under the one charge
    first = one.release(answer(plan, one, value=1.0))
    second = other.release(answer(plan, other, value=2.0))
    assert wire(first) == wire(second)
    assert second.array_records[ARRAYS]["w"].numpy().tolist() == [1.0, 1.0]
    assert berlin.charged() == 1
    assert berlin.kinds == ["open", "policy", "reserve", "commit"]


def test_without_privacy_two_processes_with_one_task_send_their_own(berlin: Site) -> None:
    plan = public_plan(privacy={"trust": "none"})
    one, other = berlin.guard(plan), berlin.guard(plan, books=berlin.process())
    assert one.admit(ask()) is None
    assert other.admit(ask()) is None
    for guard in (one, other):
        assert set(guard.release(answer(plan, guard, value=1.0))) == {ARRAYS, METRICS, LEDGER}
    assert berlin.kinds == ["open", "policy", "reserve", "commit"]


def test_a_process_that_comes_too_late_with_an_answer_sends_nothing(berlin: Site) -> None:
    plan = public_plan()
    late = berlin.guard(plan, books=berlin.process())
    assert late.admit(ask(1)) is None
    for number in (1, 2, 3):  # meanwhile the task is answered, and then two more
        berlin.play(plan, number)
    with pytest.raises(Exception, match="no longer stored"):
        late.release(answer(plan, late, value=1.0))
    assert berlin.charged() == 3


def test_a_forked_process_with_its_parents_books_trains_nothing(clients: Clients) -> None:
    # SQLite's locks don't survive a fork: a process that should work is spawned.
    plan = plan_of()
    assert not clients.train(plan, 1).has_error()
    clients.events.clear()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            reply = clients.train(plan, 2)
            os.write(write, f"{reply.error.code} {'read' in clients.events}".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read().decode() == f"{int(Fault.LEDGER_CLOSED)} False"
    os.waitpid(child, 0)
    assert not clients.train(plan, 2).has_error()
    assert clients.charged() == {plan.train_release(): 2}


# --- budgets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_budget_equal_to_the_plans_epsilon_plays_all_rounds_and_not_one_more(berlin: Site, every: int | None) -> None:
    judged: dict[str, Any] = (
        {} if every is None else {"evaluation": {"where": "clients", "every": every, "count_noise": 40.0}}
    )
    plan = public_plan(**judged)
    policy = site(plan, cost(plan, 10))
    for number in range(1, 11):
        assert played(berlin.play(plan, number, policy)), number
        if plan.evaluates_at_clients and plan.is_evaluated(number):
            assert played(berlin.play(plan, number, policy, phase="evaluate")), number
    for phase in ("train", "evaluate") if judged else ("train",):
        assert berlin.play(plan, 10, policy, phase=phase, salt=1) is Fault.BUDGET_EXHAUSTED


@pytest.mark.parametrize("kept", ["rdp", "sum"])
def test_a_budget_for_three_of_ten_rounds_plays_three(berlin: Site, kept: Any) -> None:
    plan = public_plan()
    policy = site(plan, cost(plan, 3))
    policy = policy.model_copy(update={"budget": (policy.budget[0].model_copy(update={"filter": kept}),)})
    outcomes = [berlin.play(plan, number, policy) for number in range(1, 11)]
    assert [played(outcome) for outcome in outcomes] == [True] * 3 + [False] * 7
    assert set(outcomes[3:]) == {Fault.BUDGET_EXHAUSTED}
    assert berlin.charged() == 3


@pytest.mark.parametrize("limit", [1e-9, 0.01])
def test_a_budget_that_covers_no_round_refuses_the_first_and_nothing_is_charged(berlin: Site, limit: float) -> None:
    plan = public_plan()
    assert berlin.play(plan, 1, site(plan, limit)) is Fault.BUDGET_EXHAUSTED
    assert berlin.kinds == ["open", "policy", "budget-exhausted"]
    assert berlin.charged() == 0


def test_in_a_simulation_a_client_has_the_budget_the_plan_gives_it(clients: Clients) -> None:
    base = plan_of()
    assert base.privacy.epsilon is not None
    first = epsilon({base.train_release(): 1}, base.privacy.delta).epsilon  # type: ignore[dict-item]
    plan = plan_of(privacy={"client_budgets": {"1": first}, "budget": base.privacy.epsilon})
    for number in (1, 2, 3):
        assert not clients.train(plan, number, client="0").has_error()
        assert clients.train(plan, number, client="1").has_error() == (number > 1)


def test_principle_3_a_plan_that_promises_less_than_its_noise_gives_gets_nothing(berlin: Site) -> None:
    lying = public_plan(privacy={"epsilon": 0.01})
    policy = simulated_policy(lying, "berlin").model_copy(update={"budget_scope": "people"})
    assert berlin.play(lying, 1, policy) is Fault.BUDGET_EXHAUSTED


def test_a_plan_that_is_not_resolved_gets_nothing(berlin: Site) -> None:
    plan = Plan.model_validate({"privacy": {"epsilon": 1.0}})
    assert berlin.play(plan, 1) is Fault.POLICY_NOISE
    assert berlin.charged() == 0


def test_two_plans_one_after_the_other_share_one_budget(berlin: Site) -> None:
    # Rule 4: across plans a filter of the actual charges, as the second may be chosen after seeing the first's results.
    first, second = public_plan(), public_plan(name="second", training={"steps": 5})
    policy = site(first, 4.0, release=ReleasePolicy(counts=True))
    rounds = 0
    while rounds < 2 and played(berlin.play(first, rounds + 1, policy)):
        rounds += 1
    assert rounds == 2
    more = 0
    while played(berlin.play(second, 1, policy, salt=more)):
        more += 1
    assert 0 < more < 10
    assert berlin.play(second, 1, policy, salt=more) is Fault.BUDGET_EXHAUSTED
    # A small release of the first plan may still fit; and the books hold both plans.
    account = berlin.books.ledger.account("people", first.balance)
    assert [entry.plan for entry in account.plans] == [first.digest(), second.digest()]
    spent = policy.budget[0].limit.spent(account)
    assert spent.epsilon <= 4.0
    # The second plan tells its server of its own releases alone.
    own = berlin.guard(second, policy).epsilon()
    assert own == epsilon({second.train_release(): more}, second.privacy.delta).epsilon  # type: ignore[dict-item]


def test_a_budget_that_one_plan_has_to_itself_is_closed_to_another(berlin: Site) -> None:
    first, second = public_plan(), public_plan(name="second")
    policy = site(first, cost(first, 10), release=ReleasePolicy(counts=True))
    assert played(berlin.play(first, 1, policy))
    assert berlin.play(second, 1, policy) is Fault.BUDGET_EXHAUSTED
    assert played(berlin.play(first, 2, policy))


def test_rule_6_a_person_and_a_record_have_books_of_their_own(berlin: Site) -> None:
    people: dict[str, Any] = {"data": {"person_column": "who", "max_rows_per_person": 3}}
    record, person = public_plan(), public_plan(name="people", **people)
    assert berlin.play(person, 1, site(record)) is Fault.POLICY_UNIT
    policy = site(record, budget=(*site(record).budget, *site(person).budget))
    assert played(berlin.play(record, 1, policy))
    assert played(berlin.play(person, 1, policy))
    assert (berlin.charged("record"), berlin.charged("person")) == (1, 1)


def exact_epsilon(delta: float, *events: tuple[dp_event.DpEvent, int]) -> float:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for event, count in events:
        if count:
            accountant.compose(event, count)
    return float(accountant.get_epsilon(delta))


@pytest.mark.parametrize("people", [1, 3])
def test_rule_4_the_epsilon_in_each_reply_is_that_of_all_releases_so_far(clients: Clients, people: int) -> None:
    """Training every round, judgement every second one, some of them asked for twice; recomputed by another library."""
    data: dict[str, Any] = {} if people == 1 else {"data": {"person_column": "who", "max_rows_per_person": people}}
    plan = plan_of(
        training={"steps": 3, "sample_rate": 0.4 if people == 1 else 1.0},
        privacy={"noise_multiplier": 4.0},
        federation={"rounds": 4},
        evaluation={**AT_CLIENTS, "every": 2, "count_noise": 15.0},
        **data,
    )
    step = (
        dp_event.PoissonSampledDpEvent(0.4, dp_event.GaussianDpEvent(4.0))
        if people == 1
        else dp_event.GaussianDpEvent(4.0 / people)
    )
    counts = dp_event.GaussianDpEvent(15.0 / (people * 2**0.5))
    trained = judged = 0
    figures = []
    for number in range(1, 5):
        for kind in ("train", "evaluate") if number % 2 == 0 else ("train",):
            reply = clients.ask(plan, content_of(plan, number), kind=kind)
            trained += kind == "train"
            judged += kind == "evaluate"
            figures.append(metrics_of(reply)[EPSILON])
            exact = exact_epsilon(plan.privacy.delta, (step, 3 * trained), (counts, judged))
            assert figures[-1] == pytest.approx(exact, rel=1e-6)
            clients.ask(plan, content_of(plan, number), kind=kind)
    assert figures == sorted(set(figures))
    assert figures[-1] <= plan.privacy.epsilon


# --- policy --------------------------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], Fault]] = {
    "another federation": ({"allow": Allow(federations=("other",))}, Fault.POLICY_FEDERATION),
    "no federation": ({"allow": Allow(federations=())}, Fault.POLICY_FEDERATION),
    "another plan": ({"allow": Allow(plans=("a" * 64,))}, Fault.POLICY_PLAN),
    "another model": ({"allow": Allow(models=("mlp",))}, Fault.POLICY_MODEL),
    "no budget": ({"budget": ()}, Fault.POLICY_UNIT),
    "a budget of another unit": (
        {"budget": (Budget(unit="person", trust="local", epsilon=9.0, delta=1e-5),)},
        Fault.POLICY_UNIT,
    ),
    "a budget of another trust": (
        {"budget": (Budget(unit="record", trust="distributed", epsilon=9.0, delta=1e-5),)},
        Fault.POLICY_UNIT,
    ),
    "too little noise": ({"allow": Allow(least_noise_multiplier=8.1)}, Fault.POLICY_NOISE),
    "too large a norm": ({"allow": Allow(largest_clipping_norm=0.9)}, Fault.POLICY_CLIPPING),
    "no counts": ({"release": ReleasePolicy(counts=False)}, Fault.POLICY_FIELD),
    "no rounds": ({"allow": Allow(rounds_a_day=1)}, Fault.POLICY_RATE),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_principle_2_what_the_policy_does_not_allow_is_refused_and_noted_with_nothing_charged(
    berlin: Site, case: str
) -> None:
    change, fault = REFUSALS[case]
    plan = public_plan(evaluation={"where": "clients"})
    before = 0
    if fault is Fault.POLICY_RATE:
        assert played(berlin.play(plan, 9))
        before = 1
    policy = site(plan, **change)
    assert berlin.play(plan, 1, policy) is fault
    assert berlin.play(plan, 1, policy) is fault  # noted once
    assert berlin.charged() == before
    assert berlin.kinds.count(fault.reason) == 1
    assert berlin.kinds[-1] == fault.reason
    assert played(berlin.play(plan, 1))  # and nothing stays behind of it


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault.name.startswith(("POLICY_", "SITE_"))])
def test_the_ledger_has_a_code_of_its_own_for_every_rule_of_the_policy(fault: Fault) -> None:
    assert Reason(fault.reason) not in (Reason.POLICY, Reason.ROUNDS_A_DAY)


def test_principle_2_noise_that_follows_from_a_seed_is_refused_unless_the_site_allows_it(berlin: Site) -> None:
    plan = public_plan(privacy={"noise": "reproducible"})
    assert berlin.play(plan, 1) is Fault.POLICY_NOISE
    assert played(berlin.play(plan, 1, site(plan, allow=Allow(reproducible_noise=True))))


def test_principle_2_a_plan_without_privacy_is_refused_unless_its_federation_is_entrusted(berlin: Site) -> None:
    plan = public_plan(privacy={"trust": "none"})
    for release in (ReleasePolicy(), ReleasePolicy(entrust=("other",))):
        assert berlin.play(plan, 1, site(plan, release=release)) is Fault.POLICY_ENTRUST
    assert played(berlin.play(plan, 1))
    (commit,) = [entry for entry in berlin.books.ledger.entries("people") if entry.kind == "commit"]
    assert {commit.body["fields"][name] for name in ("arrays", f"{METRICS}.{TRAIN_LOSS}")} == {"entrusted"}


def test_principle_2_a_change_of_policy_is_an_entry_and_counts_at_once_and_so_does_the_way_back(berlin: Site) -> None:
    plan = public_plan()
    one, other = site(plan), site(plan, allow=Allow(least_noise_multiplier=9.0))
    assert played(berlin.play(plan, 1, one))
    assert berlin.play(plan, 2, other) is Fault.POLICY_NOISE
    assert played(berlin.play(plan, 2, one))
    entries = [entry for entry in berlin.books.ledger.entries("people") if entry.kind == "policy"]
    assert [entry.body["digest"] for entry in entries] == [one.digest(), other.digest(), one.digest()]
    assert [entry.body["policy"] for entry in entries] == [one.to_json(), other.to_json(), one.to_json()]
    assert berlin.books.ledger.snapshot("people").policy == one.digest()


def test_principle_2_processes_under_unlike_policies_say_so_each_time(berlin: Site) -> None:
    plan = public_plan()
    one, other = site(plan), site(plan, 50.0)
    elsewhere = berlin.process()
    digests = []
    for number, (policy, books) in enumerate([(one, None), (other, elsewhere), (one, None), (other, elsewhere)], 1):
        assert berlin.guard(plan, policy, books).admit(ask(number)) is None
        digests.append(berlin.books.ledger.snapshot("people").policy)
    assert digests == [one.digest(), other.digest()] * 2


def test_principle_2_a_lower_budget_counts_at_once_even_for_what_was_begun(berlin: Site) -> None:
    plan = public_plan()
    assert played(berlin.play(plan, 1, site(plan, 100.0)))
    assert berlin.play(plan, 2, site(plan, 1e-3)) is Fault.BUDGET_EXHAUSTED
    assert berlin.charged() == 1


def test_principle_2_a_stored_reply_is_not_sent_once_the_policy_lets_less_out(berlin: Site) -> None:
    # It was committed, but perhaps it never left.
    plan = public_plan(privacy={"unprotected": ["train-loss"]})
    loose = site(plan, release=ReleasePolicy(unprotected=("train-loss",)))
    strict = site(plan, release=ReleasePolicy())
    for number, policy in ((1, loose), (2, strict)):
        guard = berlin.guard(plan, policy)
        assert guard.admit(ask(number)) is None
        content = answer(plan, guard)
        for field in guard.unprotected:
            content.metric_records[METRICS][field] = 0.5
        guard.release(content)
    assert berlin.play(plan, 1, strict) is Fault.POLICY_FIELD
    assert played(berlin.play(plan, 1, loose))
    assert played(berlin.play(plan, 2, loose))  # one that holds less than it may is sent as it is
    assert berlin.charged() == 2


def test_rounds_a_day_counts_rounds_and_not_their_parts_and_forgets_after_a_day(berlin: Site) -> None:
    plan = public_plan(evaluation={"where": "clients"})
    policy = site(plan, allow=Allow(rounds_a_day=2))
    assert played(berlin.play(plan, 1, policy))
    berlin.clock.time += timedelta(hours=23)
    assert played(berlin.play(plan, 2, policy))
    assert played(berlin.play(plan, 2, policy, phase="evaluate"))
    assert berlin.play(plan, 3, policy) is Fault.POLICY_RATE
    assert berlin.play(plan, 1, policy, run="another") is Fault.POLICY_RATE
    assert played(berlin.play(plan, 1, policy))  # an answer that is stored is no new round
    berlin.clock.time += timedelta(hours=1, seconds=1)
    assert played(berlin.play(plan, 3, policy))
    assert berlin.play(plan, 4, policy) is Fault.POLICY_RATE
    berlin.clock.time -= timedelta(days=400)  # a clock that jumps back frees nothing
    assert berlin.play(plan, 4, policy) is Fault.POLICY_RATE
    berlin.clock.time += timedelta(days=401)
    assert played(berlin.play(plan, 4, policy))


def test_a_round_that_is_asked_for_in_other_words_is_one_more_of_the_day(berlin: Site) -> None:
    plan = public_plan()
    policy = site(plan, allow=Allow(rounds_a_day=2))
    assert played(berlin.play(plan, 1, policy))
    assert played(berlin.play(plan, 1, policy, salt=1))
    assert berlin.play(plan, 1, policy, salt=2) is Fault.POLICY_RATE
    assert played(berlin.play(plan, 1, policy, salt=1))
    assert berlin.charged() == 2


def test_rounds_a_day_and_an_empty_budget_leave_their_entries(berlin: Site) -> None:
    plan = public_plan()
    policy = site(plan, 1e-3, allow=Allow(rounds_a_day=2))
    assert berlin.play(plan, 1, policy) is Fault.BUDGET_EXHAUSTED
    assert berlin.kinds == ["open", "policy", "budget-exhausted"]


def test_of_two_processes_one_begins_the_days_last_round(berlin: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = public_plan()
    policy = site(plan, allow=Allow(rounds_a_day=1))
    outcomes: dict[str, Any] = {}
    other = berlin.process()
    other.prepare(policy)

    def second() -> None:
        try:
            outcomes["second"] = berlin.guard(plan, policy, other).admit(ask(2))
        except RefusedError as refused:
            outcomes["second"] = refused.fault

    thread = threading.Thread(target=second)
    count = berlin.books.ledger.tasks_within

    def meanwhile(*asked: Any) -> Any:
        found = count(*asked)
        thread.start()  # between the first one's question and its entry
        thread.join(timeout=0.3)
        return found

    monkeypatch.setattr(berlin.books.ledger, "tasks_within", meanwhile)
    assert berlin.guard(plan, policy).admit(ask(1)) is None
    thread.join()
    assert outcomes == {"second": Fault.POLICY_RATE}
    assert berlin.charged() == 1


@pytest.mark.parametrize("name", ["few", "none", "unreadable", "missing"])
def test_rule_5_refusals_do_not_depend_on_data(clients: Clients, name: str) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    if name == "unreadable":
        clients.error = OSError(SECRET)
    else:
        clients.data = clients.held = {"few": {"0": some_records(3)}, "none": {"0": some_records(0)}}.get(name, {})
    outcomes = []
    changes: list[dict[str, Any]] = [{"allow": Allow(models=())}, {"budget": ()}, {"release": ReleasePolicy()}, {}]
    for change in changes:
        policy = simulated_policy(plan, "0").model_copy(update=change)
        clients.policy = lambda *_, policy=policy: policy
        reply = clients.ask(plan, content_of(plan, run="x"), client="0")
        outcomes.append(Fault(reply.error.code) if reply.has_error() else None)
    assert outcomes[:3] == [Fault.POLICY_MODEL, Fault.POLICY_UNIT, Fault.POLICY_FIELD]
    for attempt in range(5):
        reply = clients.ask(plan, content_of(plan, 1, {n: v + attempt for n, v in model_of(plan).items()}))
    assert_fault(reply, Fault.BUDGET_EXHAUSTED)


# --- the ledger: without it nothing is trained ---------------------------------------------------------------------


def assert_closed(clients: Clients, caplog: pytest.LogCaptureFixture, plan: Plan, text: str) -> None:
    """Refused with one code, nothing read; the owner's log says what is wrong, without a word of data."""
    caplog.set_level(logging.DEBUG)
    clients.events.clear()
    for kind in ("train", "evaluate"):
        assert_fault(clients.ask(plan, content_of(plan, 3), kind=kind), Fault.LEDGER_CLOSED)
    assert_fault(clients.ask(plan, question(plan), kind=STATEMENT), Fault.LEDGER_CLOSED)
    assert set(clients.events) <= {"reserve"}
    assert text in caplog.text
    assert SECRET not in caplog.text


def overwrite(path: Path, where: int, what: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(where)
        file.write(what)


def edit_an_entry(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DROP TRIGGER entries_are_not_changed")
    connection.execute("UPDATE entries SET time = '2020-01-01T00:00:00.000000Z' WHERE position = 1")
    connection.execute(
        "CREATE TRIGGER entries_are_not_changed BEFORE UPDATE ON entries\n"
        "            BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END"
    )
    connection.close()


def newer_schema(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


def as_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: path.unlink(), "no ledger here"),
    "a folder": (as_a_folder, "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty, it was cut off"),
    "cut off": (lambda path: os.truncate(path, path.stat().st_size // 2), "restore a backup"),
    "something else": (lambda path: path.write_bytes(random.Random(1).randbytes(20_000)), "is no ledger"),
    "another's": (lambda path: overwrite(path, 68, b"ABCD"), "is no ledger"),
    "newer": (newer_schema, "newer Veil"),
    "edited": (edit_an_entry, "its hash is not that of its content"),
    "without its secret": (lambda path: path.with_name(path.name + ".owners").unlink(), "without it nobody signs"),
    "with half a secret": (
        lambda path: path.with_name(path.name + ".owners").write_bytes(b"x" * 15),
        "without it nobody signs",
    ),
    "another owner's": (
        lambda path: path.with_name(path.name + ".owners").write_bytes(b"x" * 32),
        "belongs to another key",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_principle_5_without_a_sound_ledger_nothing_is_trained(
    clients: Clients, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    damage, text = DAMAGE[case]
    plan = plan_of(evaluation=AT_CLIENTS)
    clients.train(plan)
    clients.restart()
    damage(clients.path)
    assert_closed(clients, caplog, plan, text)


@pytest.mark.parametrize("config", [{}, {"ledger": ""}, {"ledger": "/nowhere/at/all"}, {"ledger": 3}])
def test_a_client_that_is_told_of_no_ledger_trains_nothing(clients: Clients, config: Any) -> None:
    from shared_models.plan_file import write_plan

    plan = plan_of()
    reply = clients.ask(plan, content_of(plan), config={"plan": write_plan(plan), **config})
    assert_fault(reply, Fault.LEDGER_CLOSED)
    assert clients.events == []


def test_a_ledger_that_can_not_be_written_trains_nothing(clients: Clients, caplog: pytest.LogCaptureFixture) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    clients.train(plan)
    secret = clients.books.secret
    clients.restart()
    register(str(clients.path), Books(Ledger.open(clients.path, read_only=True), secret))
    for kind in ("train", "evaluate"):
        assert_fault(clients.ask(plan, content_of(plan, 2), kind=kind), Fault.LEDGER_CLOSED)
    assert clients.events == []
    assert "opened for reading only" in caplog.text


@contextmanager
def full(clients: Clients, room: int = 0) -> Iterator[None]:
    """No page more than there are, and `room`: as on a disk that is full."""
    database = clients.books.ledger._store._db
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages + room}")
    yield
    database.execute("PRAGMA max_page_count = 1000000")


def fill(clients: Clients) -> None:
    """Entries until the next one needs a page more."""
    ledger = clients.books.ledger
    for number in range(10_000):
        try:
            ledger.open_scope(f"{number:0200}", owner="")
        except LedgerError:
            return
    raise AssertionError("the disk is not full")


def test_a_full_disk_trains_nothing_and_once_there_is_room_the_same_request_goes_on(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    clients.train(plan)
    with full(clients):
        fill(clients)
        assert_fault(clients.train(plan, 2), Fault.LEDGER_CLOSED)
        assert "no room left" in caplog.text
        assert clients.events == ["reserve", "read", "train", "reserve"]
    assert not clients.train(plan, 2).has_error()
    assert clients.charged() == {plan.train_release(): 2}


def test_a_disk_that_is_full_by_the_time_of_the_reply_sends_nothing_and_keeps_the_charge(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of()
    clients.train(plan)
    train = private_trainer.train_private

    def filled_meanwhile(*given: Any, **options: Any) -> Any:
        with full(clients):
            fill(clients)
        clients.books.ledger._store._db.execute("PRAGMA max_page_count = 1")  # as many as there are
        return train(*given, **options)

    monkeypatch.setattr(private_trainer, "train_private", filled_meanwhile)
    # Data was touched, so it is no refusal: whoever keeps books of this client counts the round.
    assert_fault(clients.train(plan, 2), Fault.CLIENT_FAILED)
    assert clients.kinds() == ["open", "policy", "reserve", "commit", "reserve"]
    clients.books.ledger._store._db.execute("PRAGMA max_page_count = 1000000")
    monkeypatch.setattr(private_trainer, "train_private", train)
    assert not clients.train(plan, 2).has_error()
    assert clients.charged() == {plan.train_release(): 2}


def test_a_ledger_that_is_replaced_while_it_is_in_use_trains_nothing(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of()
    clients.train(plan)
    fresh = clients.path.with_name("fresh.sqlite")
    create_simulated(fresh)
    fresh.replace(clients.path)  # every charge is gone with the old one
    assert_fault(clients.train(plan, 2), Fault.LEDGER_CLOSED)
    assert "another file was put in its place" in caplog.text
    assert clients.events.count("read") == 1
    assert [reply.error.code for reply in [clients.train(plan, 3)]] == [Fault.LEDGER_CLOSED]


def test_a_reply_that_nothing_lets_out_leaves_its_charge_and_a_code(berlin: Site) -> None:
    plan = public_plan()
    guard = berlin.guard(plan)
    assert guard.admit(ask()) is None
    wrong = answer(plan, guard)
    wrong["more"] = ConfigRecord({"x": SECRET})
    with pytest.raises(ValueError, match="nothing says"):
        guard.release(wrong)
    assert berlin.kinds == ["open", "policy", "reserve"]
    assert berlin.charged() == 1
    guard.failed()
    assert berlin.kinds == ["open", "policy", "reserve", "client-failed"]


# --- statements ----------------------------------------------------------------------------------------------------


def stated(clients: Clients, plan: Plan, **known: Any) -> Message:
    return clients.ask(plan, question(plan, **known), kind=STATEMENT)


def text_of(reply: Message) -> str:
    return str(reply.content.config_records[CONFIG][STATEMENT_TEXT])


def test_a_statement_says_what_was_charged_and_is_signed_by_the_scopes_owner(clients: Clients) -> None:
    plan = plan_of()
    replies = [clients.train(plan, number) for number in (1, 2)]
    head = head_of(replies[-1])
    reply = stated(clients, plan, **head)
    found = verify_statement(text_of(reply), owner=clients.books.owner("0").public_hex)
    assert (found.scope, found.detail, found.policy) == ("0", "full", simulated_policy(plan, "0").digest())
    (balance,) = found.balances
    assert balance.account is not None
    assert balance.account.plans[0].charged == ((plan.train_release(), 2),)
    # What it covers: everything that left, and the commit after the entry that the server was told of.
    assert found.anchor.position == head[HEAD_POSITION] + 1
    other = verify_statement(text_of(stated(clients, plan)))
    assert (other.owner, other.anchor) == (found.owner, found.anchor)
    assert verify_statement(text_of(clients.ask(plan, question(plan), kind=STATEMENT, client="1"))).owner != found.owner


@pytest.mark.parametrize("detail", ["epsilon", "totals", "full"])
def test_a_statement_has_the_detail_that_the_policy_permits(clients: Clients, detail: Any) -> None:
    plan = plan_of()
    clients.policy = lambda plan, client: simulated_policy(plan, client).model_copy(
        update={"release": ReleasePolicy(statement=detail)}
    )
    clients.train(plan)
    found = verify_statement(text_of(stated(clients, plan)))
    (balance,) = found.balances
    assert found.detail == detail
    assert (balance.totals is None) == (detail == "epsilon")
    assert (balance.account is None) == (detail != "full")


def test_without_privacy_a_statement_claims_nothing(clients: Clients) -> None:
    plan = plan_of(private=False)
    clients.train(plan)
    assert verify_statement(text_of(stated(clients, plan))).balances == ()


def test_a_client_that_never_worked_says_that_nothing_was_spent(clients: Clients) -> None:
    plan = plan_of()
    (balance,) = verify_statement(text_of(stated(clients, plan))).balances
    assert balance.spent.epsilon == 0
    assert clients.kinds() == ["open", "policy"]


def backup(path: Path) -> Callable[[], None]:
    """Copies the ledger as it is now; what comes back puts the copy in its place."""
    with Ledger.open(path, durable=False) as ledger:
        ledger._store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = path.with_name("backup.sqlite")
    shutil.copy(path, copy)

    def restore() -> None:
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        copy.replace(path)

    return restore


def test_principle_5_a_ledger_that_was_rolled_back_is_refused_by_whoever_saw_more_of_it(
    clients: Clients, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of()
    clients.train(plan, 1)
    clients.restart()
    restore = backup(clients.path)
    head = head_of(clients.train(plan, 2))
    assert not stated(clients, plan, **head).has_error()
    clients.restart()
    restore()
    assert_fault(stated(clients, plan, **head), Fault.LEDGER_CLOSED)
    assert "which a server was told of" in caplog.text
    # Grown again to the same length, by other entries, it is still not the one that was seen.
    clients.ask(plan, changed_by_a_bit(content_of(plan, 2)))
    clients.train(plan, 3)
    assert len(clients.entries()) > head[HEAD_POSITION]
    assert_fault(stated(clients, plan, **head), Fault.LEDGER_CLOSED)
    assert not stated(clients, plan).has_error()


def test_every_entry_that_a_reply_ever_told_of_is_held(clients: Clients) -> None:
    plan = plan_of(evaluation=AT_CLIENTS)
    heads = []
    for number in (1, 2, 3):
        heads += [head_of(clients.ask(plan, content_of(plan, number), kind=k)) for k in ("train", "evaluate")]
    clients.restart()
    for head in heads:
        assert not stated(clients, plan, **head).has_error()


@pytest.mark.parametrize(
    "known",
    [
        {HEAD_POSITION: 2},
        {HEAD_HASH: "a" * 64},
        {HEAD_POSITION: 2, HEAD_HASH: "a" * 64},
        {HEAD_POSITION: -1, HEAD_HASH: "a" * 64},
        {HEAD_POSITION: 2**62, HEAD_HASH: "a" * 64},
        {HEAD_POSITION: 2.0, HEAD_HASH: "a" * 64},
        {HEAD_POSITION: float("nan"), HEAD_HASH: "a" * 64},
        {HEAD_POSITION: True, HEAD_HASH: "a" * 64},
        {HEAD_POSITION: "2", HEAD_HASH: "a" * 64},
        {HEAD_POSITION: [2], HEAD_HASH: ["a" * 64]},
        {HEAD_POSITION: 2, HEAD_HASH: "A" * 64},
        {HEAD_POSITION: 2, HEAD_HASH: b"a" * 64},
        {HEAD_POSITION: 2, HEAD_HASH: ""},
    ],
)
def test_a_server_that_claims_to_have_seen_what_never_was_gets_no_statement(clients: Clients, known: Any) -> None:
    plan = plan_of()
    clients.train(plan)
    assert_fault(stated(clients, plan, **known), Fault.LEDGER_CLOSED)


def test_a_statement_is_made_under_the_policy_of_today(clients: Clients) -> None:
    plan = plan_of()
    clients.train(plan)
    lower = Budget(unit="record", trust="local", epsilon=0.5, delta=plan.privacy.delta)
    clients.policy = lambda plan, client: simulated_policy(plan, client).model_copy(update={"budget": (lower,)})
    found = verify_statement(text_of(stated(clients, plan)))
    assert found.balances[0].budget.epsilon == 0.5
    assert found.policy == clients.policy(plan, "0").digest()
    assert clients.kinds()[-1] == "policy"


# --- a wave of everything at once ----------------------------------------------------------------------------------


def test_whatever_a_server_sends_in_whatever_order_each_charge_has_a_task_and_each_task_one_answer(
    clients: Clients,
) -> None:
    """Replays, probes, judgements and restarts in a random order, against a model of what may happen."""
    plan = plan_of(evaluation=AT_CLIENTS, federation={"rounds": 3})
    rng = random.Random(5)
    answers: dict[tuple[str, int, int], bytes] = {}
    contents = {
        (number, salt): content_of(plan, number, {n: v + salt for n, v in model_of(plan).items()})
        for number in (1, 2, 3)
        for salt in (0, 1)
    }
    for _ in range(60):
        if rng.random() < 0.1:
            clients.restart()
        kind, number, salt = rng.choice(["train", "evaluate"]), rng.randint(1, 3), rng.randint(0, 1)
        reply = clients.ask(plan, contents[number, salt], kind=kind)
        key = (kind, number, salt)
        if reply.has_error():
            allowed = {Fault.REPLY_GONE} if key in answers else {Fault.BUDGET_EXHAUSTED}
            assert Fault(reply.error.code) in allowed
        else:
            assert answers.setdefault(key, wire(reply.content)) == wire(reply.content)
    # Three of each at most, as planned; and as many charges as answers.
    by_kind = Counter(kind for kind, _, _ in answers)
    assert by_kind == {"train": 3, "evaluate": 3}
    assert clients.charged() == {plan.train_release(): 3, plan.evaluate_release(): 3}
    assert clients.kinds().count("reserve") == clients.kinds().count("commit") == 6
