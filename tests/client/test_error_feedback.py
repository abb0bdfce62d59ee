"""What top-k leaves out is sent later: once, all of it, or it is dropped and said to be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from client.error_feedback import ErrorFeedback
from client.guard import Request
from shared_models.parameters import Layout, Parameters
from shared_models.protocol import ARRAYS
from shared_models.wire import decode_update, encode_update

ENTRIES = (("weight", (4, 5)), ("scale", ()), ("bias", (4,)))
TOP = Layout(entries=ENTRIES, wire="top-k", top_fraction=0.12)  # 3 of 25
PLAN = "plan-1"


def request(number: int, run: str = "run-1", digest: str = "") -> Request:
    return Request(run=run, round=number, phase="train", digest=digest or f"digest-{number}")


def update(seed: int) -> Parameters:
    """Whole numbers: their sums are exact."""
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.integers(-99, 100, shape), np.float32) for name, shape in ENTRIES}


def reply(arrays: ArrayRecord) -> RecordDict:
    return RecordDict({ARRAYS: arrays})


def answer(
    state: RecordDict, number: int, change: Parameters, layout: Layout = TOP, *, plan: str = PLAN, **asked: str
) -> Parameters:
    """One round that goes well: what arrives."""
    feedback = ErrorFeedback(state, layout, request(number, **asked), plan=plan)
    arrays = feedback.encode(change, seed=number)
    feedback.answered(reply(recorddict_from_proto(recorddict_to_proto(reply(arrays))).array_records[ARRAYS]))
    return decode_update(arrays, layout)


def kept(state: RecordDict) -> Parameters:
    """What would be added to the next update, seen from outside: an update of nothing, sent in full."""
    full = Layout(entries=ENTRIES, wire="top-k", top_fraction=1.0)
    copy = recorddict_from_proto(recorddict_to_proto(state))
    return answer(copy, 1_000, {name: np.zeros(shape, np.float32) for name, shape in ENTRIES}, full)


def total(*updates: Parameters) -> Parameters:
    return {name: np.sum([one[name] for one in updates], axis=0) for name, _ in ENTRIES}


def same(one: Parameters, other: Parameters) -> bool:
    return all(np.array_equal(one[name], other[name]) for name, _ in ENTRIES)


# --- rounds that go well -------------------------------------------------------------------------------------------


def test_what_arrived_and_what_is_kept_are_together_what_was_trained() -> None:
    state, changes, arrived = RecordDict(), [update(seed) for seed in range(8)], []
    for number, change in enumerate(changes, start=1):
        arrived.append(answer(state, number, change))
        assert sum(np.count_nonzero(value) for value in arrived[-1].values()) <= 3
        assert same(total(*arrived, kept(state)), total(*changes[:number]))
    assert any(value.any() for value in kept(state).values())


def test_everything_arrives_in_the_end() -> None:
    state, change = RecordDict(), update(1)
    nothing = {name: np.zeros(shape, np.float32) for name, shape in ENTRIES}
    arrived = [answer(state, 1, change), *(answer(state, number, nothing) for number in range(2, 10))]
    assert same(total(*arrived), change)  # 9 rounds of 3 values: all 25
    assert not any(value.any() for value in kept(state).values())


def test_rounds_that_a_client_is_not_in_lose_nothing() -> None:
    state = RecordDict()
    arrived = [answer(state, number, update(number)) for number in (1, 2, 7)]
    assert same(total(*arrived, kept(state)), total(*(update(number) for number in (1, 2, 7))))


def test_the_state_travels_as_any_of_flowers_does_and_others_may_use_it_too() -> None:
    state = RecordDict({"theirs": ConfigRecord({"x": 1})})
    answer(state, 1, update(1))
    travelled = recorddict_from_proto(recorddict_to_proto(state))
    assert same(answer(travelled, 2, update(2)), answer(state, 2, update(2)))
    assert state["theirs"] == ConfigRecord({"x": 1})


@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
def test_the_other_forms_keep_nothing(wire: Any) -> None:
    layout, state = Layout(entries=ENTRIES, wire=wire), RecordDict()
    feedback = ErrorFeedback(state, layout, request(1), plan=PLAN)
    arrays = feedback.encode(update(1), seed=5)
    assert arrays == encode_update(update(1), layout, seed=5)
    feedback.answered(reply(arrays))
    assert len(state) == 0


# --- never twice ---------------------------------------------------------------------------------------------------


def test_an_update_that_never_left_changes_nothing() -> None:
    """Training failed after it was encoded, or the ledger could not be written: the round may run again."""
    state = RecordDict()
    answer(state, 1, update(1))
    before = kept(state)
    first = ErrorFeedback(state, TOP, request(2), plan=PLAN).encode(update(2), seed=2)
    ErrorFeedback(state, TOP, request(1, digest="in other words"), plan=PLAN).encode(update(3), seed=1)
    ErrorFeedback(state, TOP, request(2, run="run-2"), plan=PLAN).encode(update(3), seed=1)
    assert same(kept(state), before)
    again = ErrorFeedback(state, TOP, request(2), plan=PLAN).encode(update(2), seed=2)
    assert first == again


def test_a_stored_reply_whose_remainder_is_kept_leaves_it_for_the_next_round(caplog: Any) -> None:
    state = RecordDict()
    answer(state, 1, update(1))
    second = answer(state, 2, update(2))
    before = kept(state)
    ErrorFeedback(state, TOP, request(2), plan=PLAN).answered(reply(encode_update(second, TOP, seed=2)))
    ErrorFeedback(state, TOP, request(1), plan=PLAN).answered(reply(encode_update(second, TOP, seed=1)))  # an older one
    assert same(kept(state), before)
    assert caplog.text == ""


def test_a_judgement_changes_nothing(caplog: Any) -> None:
    state = RecordDict()
    answer(state, 1, update(1))
    before = kept(state)
    judging = Request(run="run-1", round=1, phase="evaluate", digest="other")
    ErrorFeedback(state, TOP, judging, plan=PLAN).answered(RecordDict())
    assert same(kept(state), before)
    assert caplog.text == ""


@pytest.mark.parametrize("rounds_before", [0, 1])
def test_a_stored_reply_whose_remainder_was_lost_has_used_up_what_was_kept_before(
    rounds_before: int, caplog: Any
) -> None:
    """The process died after the ledger had the reply, before anybody had the state."""
    state = RecordDict()
    for number in range(1, rounds_before + 1):
        answer(state, number, update(number))
    now = rounds_before + 1
    stored = ErrorFeedback(state, TOP, request(now), plan=PLAN).encode(update(now), seed=now)
    ErrorFeedback(state, TOP, request(now), plan=PLAN).answered(reply(stored))
    assert len(state) == 0
    assert caplog.messages == [
        f"what updates before round {now} left out is dropped: the reply was made before, and what it left out was "
        "not kept"
    ]
    alone = answer(RecordDict(), now + 1, update(9))
    assert same(answer(state, now + 1, update(9)), alone)


def test_another_requests_remainder_is_not_that_of_a_stored_reply(caplog: Any) -> None:
    state = RecordDict()
    answer(state, 2, update(2), digest="one")
    other = ErrorFeedback(state, TOP, request(2, digest="other"), plan=PLAN)
    other.answered(reply(encode_update(update(3), TOP, seed=2)))
    assert len(state) == 0
    assert len(caplog.messages) == 1


def test_where_another_process_answered_first_its_reply_leaves_and_our_remainder_is_dropped(caplog: Any) -> None:
    state = RecordDict()
    answer(state, 1, update(1))
    ours = ErrorFeedback(state, TOP, request(2), plan=PLAN)
    ours.encode(update(2), seed=2)
    theirs = encode_update(update(3), TOP, seed=2)
    ours.answered(reply(theirs))
    assert len(state) == 0
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("asked", [{"number": 3}, {"number": 2}, {"number": 4, "run": "run-2"}])
def test_what_is_not_of_an_earlier_round_of_this_run_is_dropped(asked: dict[str, Any], caplog: Any) -> None:
    """Asked for a round again in other words: the model is another one, and what was trained for it is void."""
    state = RecordDict()
    for number in (1, 2, 3):
        answer(state, number, update(number))
    found = answer(state, asked["number"], update(9), run=asked.get("run", "run-1"))
    assert same(found, answer(RecordDict(), 1, update(9)))
    dropped = f"what updates before round {asked['number']} left out is dropped"
    assert caplog.messages == [f"{dropped}: it belongs to no earlier round of this plan's run"]
    assert same(total(found, kept_in(state, asked.get("run", "run-1"))), update(9))


def test_what_one_plan_left_out_never_leaves_with_anothers_update(caplog: Any) -> None:
    """The server names the runs: under one name it may play a plan without privacy, and then a private one."""
    state = RecordDict()
    answer(state, 1, update(1), plan="without privacy")
    assert same(answer(state, 2, update(2), plan="private"), answer(RecordDict(), 2, update(2)))
    assert caplog.messages == [
        "what updates before round 2 left out is dropped: it belongs to no earlier round of this plan's run"
    ]


def kept_in(state: RecordDict, run: str) -> Parameters:
    full = Layout(entries=ENTRIES, wire="top-k", top_fraction=1.0)
    return answer(state, 1_000, {name: np.zeros(shape, np.float32) for name, shape in ENTRIES}, full, run=run)


# --- what can't be kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.4e38])
def test_what_diverges_is_sent_and_does_not_haunt_the_rounds_after(bad: float, caplog: Any) -> None:
    state = RecordDict()
    huge = {**update(1), "bias": np.float32([3.4e38] * 4)}
    answer(state, 1, huge)  # one of these is left out
    worse = {**update(2), "bias": np.float32([bad] * 4)}
    with np.errstate(all="raise"):
        found = answer(state, 2, worse)
    assert not np.isfinite(found["bias"]).all()
    assert len(state) == 0
    assert caplog.messages == ["what updates before round 2 left out is dropped: the update is not finite"]
    assert same(answer(state, 3, update(3)), answer(RecordDict(), 3, update(3)))


def other_size(state: RecordDict) -> None:
    state["veil-left-out"] = ArrayRecord({"values": Array(np.zeros(24, np.float32))})


def cut_off(state: RecordDict) -> None:
    data = state.array_records["veil-left-out"]["values"].data
    state["veil-left-out"] = ArrayRecord({"values": Array("float32", (25,), "numpy.ndarray", data[:-1])})


def other_name(state: RecordDict) -> None:
    state["veil-left-out"] = ArrayRecord({"value": Array(np.zeros(25, np.float32))})


def no_round(state: RecordDict) -> None:
    state["veil-left-out-of"] = ConfigRecord({"plan": PLAN, "run": "run-1"})


def round_as_text(state: RecordDict) -> None:
    state["veil-left-out-of"] = ConfigRecord({"plan": PLAN, "run": "run-1", "round": "1", "request": "x"})


def other_kind(state: RecordDict) -> None:
    del state["veil-left-out"]
    state["veil-left-out"] = ConfigRecord({"values": 1})


def no_owner(state: RecordDict) -> None:
    del state["veil-left-out-of"]


def no_values(state: RecordDict) -> None:
    del state["veil-left-out"]


@pytest.mark.parametrize(
    "damage", [other_size, cut_off, other_name, no_round, round_as_text, other_kind, no_owner, no_values]
)
def test_a_damaged_state_costs_what_was_kept_and_nothing_else(
    damage: Callable[[RecordDict], None], caplog: pytest.LogCaptureFixture
) -> None:
    state = RecordDict()
    answer(state, 1, update(1))
    damage(state)
    caplog.set_level(logging.WARNING)
    assert same(answer(state, 2, update(2)), answer(RecordDict(), 2, update(2)))
    assert len(caplog.messages) == 1
    assert "is dropped" in caplog.messages[0]
    assert len(state) == 2
