"""The guard: reserved before data is touched, never taken back, and nothing in a reply that the data decides."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from client import guard as module
from client.guard import Guard, RefusedError
from privacy.accountant import epsilon
from privacy.mechanisms import DpSgd, Release
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.protocol import EPSILON, TRAIN_LOSS, WEIGHT

ACCOUNT = "veil-account"
DELTA = 1e-5


def plan_of(epsilon: float | None = 100.0, budget: float | None = None, **training: Any) -> Plan:
    """A resolved plan of full batches, which the accountant prices at once."""
    privacy: dict[str, Any] = {"noise_multiplier": 4.0, "delta": DELTA}
    if epsilon is not None:
        privacy |= {"epsilon": epsilon, "calibrated_from": "noise_multiplier"}
    if budget is not None:
        privacy["budget"] = budget
    return Plan.model_validate({"training": {"sample_rate": 1.0, "steps": 2, **training}, "privacy": privacy})


def cost(plan: Plan, rounds: int) -> float:
    release = plan.round_release()
    assert release is not None
    return epsilon({release: rounds}, plan.privacy.delta).epsilon


def independent_epsilon(*events: tuple[dp_event.DpEvent, int]) -> float:
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    for event, count in events:
        accountant.compose(event, count)
    return float(accountant.get_epsilon(DELTA))


def through_the_wire(state: RecordDict) -> RecordDict:
    """A state as a grid carries it from round to round."""
    text = recorddict_to_proto(state).SerializeToString()
    return recorddict_from_proto(ProtoRecordDict.FromString(text))


def contents(state: RecordDict) -> bytes:
    text: bytes = recorddict_to_proto(state).SerializeToString(deterministic=True)
    return text


def account(texts: Any, counts: Any) -> RecordDict:
    return RecordDict({ACCOUNT: ConfigRecord({"releases": texts, "counts": counts})})


GOOD = json.dumps(DpSgd(noise_multiplier=4.0, sample_rate=1.0, steps=2).to_json(), sort_keys=True)
OTHER = json.dumps(DpSgd(noise_multiplier=9.0, sample_rate=1.0, steps=1).to_json(), sort_keys=True)


# --- reserving -----------------------------------------------------------------------------------------------------


def test_rule_4_the_epsilon_after_each_round_is_that_of_the_whole_history() -> None:
    plan = plan_of(sample_rate=0.3)
    release = dp_event.PoissonSampledDpEvent(0.3, dp_event.GaussianDpEvent(4.0))
    state = RecordDict()
    figures = []
    for number in range(1, 5):
        guard = Guard(plan, state)
        guard.reserve()
        assert guard.spent == Counter({plan.round_release(): number})
        figures.append(guard.reply_fields(examples=3, train_loss=0.0)[EPSILON])
        assert figures[-1] == pytest.approx(independent_epsilon((release, 2 * number)), rel=1e-6)
        state = through_the_wire(state)
    assert figures == sorted(set(figures))


def test_an_unlike_history_is_composed_and_not_added_up() -> None:
    first, second = plan_of(), plan_of(steps=5)
    state = RecordDict()
    Guard(first, state).reserve()
    Guard(first, state).reserve()
    Guard(second, state).reserve()
    state = through_the_wire(state)
    guard = Guard(second, state)
    assert guard.spent == Counter({first.round_release(): 2, second.round_release(): 1})
    found = guard.reply_fields(examples=1, train_loss=0.0)[EPSILON]
    assert found == pytest.approx(independent_epsilon((dp_event.GaussianDpEvent(4.0), 2 * 2 + 5)), rel=1e-6)
    assert cost(second, 1) < found < cost(first, 2) + cost(second, 1)


@pytest.mark.parametrize("rounds", [1, 2, 5])
@pytest.mark.parametrize("by", ["budget", "epsilon"])
def test_a_limit_that_covers_some_rounds_refuses_the_next_with_nothing_charged(rounds: int, by: str) -> None:
    limit = cost(plan_of(), rounds)
    plan = plan_of(epsilon=limit) if by == "epsilon" else plan_of(budget=limit)
    state = RecordDict()
    for _ in range(rounds):
        Guard(plan, state).reserve()
    before = contents(state)
    for _ in range(3):
        with pytest.raises(RefusedError) as refused:
            Guard(plan, state).reserve()
        assert refused.value.fault is Fault.BUDGET_EXHAUSTED
        assert contents(state) == before
        state = through_the_wire(state)


@pytest.mark.parametrize("budget", [1e-9, 0.1])
def test_a_budget_that_covers_no_round_refuses_the_first(budget: float) -> None:
    state = RecordDict()
    with pytest.raises(RefusedError):
        Guard(plan_of(budget=budget), state).reserve()
    assert len(state) == 0


def test_principle_3_a_larger_budget_does_not_lift_the_plans_own_promise() -> None:
    # The server may ask for a round again and again; each time is charged, and the plan's epsilon is the end of it.
    plan, state = plan_of(epsilon=cost(plan_of(), 2), budget=1e6), RecordDict()
    Guard(plan, state).reserve()
    Guard(plan, state).reserve()
    with pytest.raises(RefusedError):
        Guard(plan, state).reserve()


def test_principle_3_a_plan_that_promises_less_than_its_noise_gives_gets_nothing() -> None:
    state = RecordDict()
    with pytest.raises(RefusedError):
        Guard(plan_of(epsilon=0.01), state).reserve()
    assert len(state) == 0


def test_a_plan_without_a_limit_or_without_noise_gets_nothing() -> None:
    state = RecordDict()
    with pytest.raises(RefusedError):
        Guard(plan_of(epsilon=None), state).reserve()
    with pytest.raises(ValueError, match="not resolved"):
        Guard(Plan(), state).reserve()
    assert len(state) == 0


@pytest.mark.parametrize("figure", [math.inf, math.nan])
def test_rule_4_a_price_that_is_no_number_is_above_every_budget(monkeypatch: pytest.MonkeyPatch, figure: float) -> None:
    monkeypatch.setattr(Guard, "_epsilon", lambda self, releases: figure)
    state = RecordDict()
    with pytest.raises(RefusedError):
        Guard(plan_of(budget=1e300), state).reserve()
    assert len(state) == 0


def test_a_charge_is_never_taken_back() -> None:
    plan, state = plan_of(), RecordDict()
    guard = Guard(plan, state)
    guard.reserve()  # training may fail now: the account is in the state, and the guard has no way to undo it
    assert Guard(plan, through_the_wire(state)).spent == Counter({plan.round_release(): 1})
    assert {name for name in vars(Guard) if not name.startswith("_")} == {"spent", "reserve", "charge", "reply_fields"}


def test_accounts_of_unlike_states_are_unlike() -> None:
    plan, mine, yours = plan_of(), RecordDict(), RecordDict()
    Guard(plan, mine).reserve()
    assert Guard(plan, yours).spent == Counter()


def test_other_records_of_the_state_are_left_alone() -> None:
    state = RecordDict({"other": ConfigRecord({"a": 1})})
    Guard(plan_of(), state).reserve()
    assert state.config_records["other"] == ConfigRecord({"a": 1})


def test_without_privacy_nothing_is_charged() -> None:
    state = RecordDict()
    guard = Guard(Plan.model_validate({"privacy": {"trust": "none"}}), state)
    guard.reserve()
    assert guard.spent == Counter()
    assert len(state) == 0


# --- a damaged account ---------------------------------------------------------------------------------------------


def test_the_good_account_of_these_tests_is_read() -> None:
    assert Guard(plan_of(), account([GOOD, OTHER], [3, 1])).spent == Counter(
        {plan_of().round_release(): 3, DpSgd(noise_multiplier=9.0, sample_rate=1.0, steps=1): 1}
    )


def test_one_release_under_two_texts_is_counted_together() -> None:
    state = account([GOOD, GOOD.replace("4.0", "4")], [3, 2])
    assert Guard(plan_of(), state).spent == Counter({plan_of().round_release(): 5})


@pytest.mark.parametrize(
    "state",
    [
        RecordDict({ACCOUNT: ConfigRecord({})}),
        RecordDict({ACCOUNT: ConfigRecord({"releases": [GOOD]})}),
        RecordDict({ACCOUNT: ConfigRecord({"counts": [3]})}),
        RecordDict({ACCOUNT: ConfigRecord({"releases": [GOOD], "counts": [3], "more": 1})}),
        RecordDict({ACCOUNT: MetricRecord({"counts": [3]})}),
        RecordDict({ACCOUNT: ArrayRecord()}),
        account(GOOD, 3),
        account("", 0),
        account([], []),
        account([GOOD], []),
        account([], [3]),
        account([GOOD], [3, 3]),
        account([GOOD, OTHER], [3]),
        account([GOOD, GOOD], [3, 1]),  # the later would hide the earlier
        account([GOOD], [0]),
        account([GOOD], [-1]),  # with the new charge: none at all
        account([GOOD, OTHER], [3, -1]),
        account([GOOD], [2.9]),
        account([GOOD], [True]),
        account([GOOD], ["3"]),
        account([GOOD], [b"3"]),
        account([3], [3]),
        account([GOOD.encode()], [3]),
        account([""], [3]),
        account(["{}"], [3]),
        account(["[]"], [3]),
        account(["null"], [3]),
        account([GOOD[:-1]], [3]),
        account([GOOD.replace("dp-sgd", "nothing")], [3]),
        account([GOOD.replace("4.0", "0.0")], [3]),
        account([GOOD.replace("4.0", "NaN")], [3]),
        account([GOOD.replace("4.0", "Infinity")], [3]),
        account([GOOD.replace("4.0", '"4.0"')], [3]),
        account([GOOD.replace('"steps": 2', '"steps": 0')], [3]),
        account([GOOD.replace('"steps": 2', '"steps": -2')], [3]),
        account([GOOD.replace('"steps": 2', '"stops": 2')], [3]),
    ],
)
def test_a_damaged_account_charges_nothing_and_lets_nothing_through(state: RecordDict) -> None:
    before = contents(state)
    guard = Guard(plan_of(), state)
    for action in (guard.reserve, lambda: guard.spent, lambda: guard.reply_fields(examples=1, train_loss=0.0)):
        with pytest.raises(ValueError, match=r".+"):
            action()
    assert contents(state) == before


counts = st.lists(st.integers(-5, 5), max_size=3)
texts = st.lists(st.sampled_from([GOOD, OTHER, GOOD.replace("4.0", "400.0"), "", "{}", "x"]), max_size=3)


@settings(deadline=None)
@given(texts, counts)
def test_whatever_an_account_holds_it_is_read_in_full_or_not_at_all(held: list[str], times: list[int]) -> None:
    guard = Guard(plan_of(), account(held, times))
    try:
        spent = guard.spent
    except ValueError:
        return
    assert spent.total() == sum(times) > 0
    assert [json.dumps(release.to_json(), sort_keys=True) for release in spent] == held
    assert all(count >= 1 for count in spent.values())


# --- what leaves ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**40), st.floats())
def test_rule_1_under_privacy_a_reply_holds_a_constant_and_the_epsilon_whatever_the_data(n: int, loss: float) -> None:
    state = account([GOOD], [2])
    fields = Guard(plan_of(), state).reply_fields(examples=n, train_loss=loss)
    assert dict(fields) == {WEIGHT: 1, EPSILON: cost(plan_of(), 2)}
    assert type(fields[WEIGHT]) is int


@pytest.mark.parametrize(("weighting", "weight"), [(None, 17), ("examples", 17), ("uniform", 1)])
def test_without_privacy_weight_and_loss_are_sent(weighting: str | None, weight: int) -> None:
    plan = Plan.model_validate({"privacy": {"trust": "none"}, "federation": {"weighting": weighting}})
    fields = Guard(plan, RecordDict()).reply_fields(examples=17, train_loss=0.25)
    assert dict(fields) == {WEIGHT: weight, TRAIN_LOSS: 0.25}


def test_rule_5_a_refusal_says_a_fixed_code_and_no_more() -> None:
    for fault in Fault:
        assert str(RefusedError(fault)) == fault.reason


def test_the_price_is_asked_of_the_one_accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[dict[Release, int], float]] = []

    def spy(releases: Any, delta: float) -> Any:
        asked.append((dict(releases), delta))
        return epsilon(releases, delta)

    monkeypatch.setattr(module, "epsilon", spy)
    plan, state = plan_of(), RecordDict()
    Guard(plan, state).reserve()
    release = plan.round_release()
    assert release is not None
    assert asked == [({release: 1}, DELTA)]
