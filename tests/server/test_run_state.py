"""A run's books: who was charged, who refused, whose claim is withdrawn."""

from __future__ import annotations

import json

import pytest

from server.replies import ClientFault
from server.run_state import ClientTally, RunState
from server.stopping import Progress
from shared_models.faults import Fault

REFUSALS = (Fault.BUDGET_EXHAUSTED, Fault.PLAN_MISMATCH, Fault.MODEL_MISMATCH)


def after(*faults: ClientFault | None) -> tuple[RunState, ClientTally]:
    state = RunState()
    for number, fault in enumerate(faults, start=1):
        state.note_client(number, "a", fault)
    return state, state.clients["a"]


def test_a_good_round_is_charged_and_counted() -> None:
    state, tally = after(None, None)
    assert tally == ClientTally(rounds=2, charged=2)
    assert state.faults == []


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_not_charged_and_withdraws_nothing(code: Fault) -> None:
    state, tally = after(ClientFault("a", code, refused=True))
    assert tally == ClientTally(refused=1)
    assert state.faults == [{"round": 1, "client": "a", "reason": code.reason}]


@pytest.mark.parametrize("code", [code for code in Fault if code is not Fault.TIMED_OUT])
def test_rule_5_any_other_failure_is_charged_and_withdraws_the_claim_for_the_round(code: Fault) -> None:
    state, tally = after(None, ClientFault("a", code))
    assert tally == ClientTally(rounds=1, charged=2, withdrawn=[2])
    assert state.faults == [{"round": 2, "client": "a", "reason": code.reason}]


def test_rule_12_a_missed_deadline_is_charged_and_withdraws_nothing() -> None:
    """When a client answers is listed as unprotected in every summary."""
    assert after(ClientFault("a", Fault.TIMED_OUT))[1] == ClientTally(charged=1)


def test_a_round_played_again_is_charged_again() -> None:
    state = RunState()
    state.note_client(3, "a", ClientFault("a", Fault.CLIENT_FAILED))
    state.note_client(3, "a", None)
    assert state.clients["a"] == ClientTally(rounds=1, charged=2, withdrawn=[3])


def test_the_books_survive_json() -> None:
    state = RunState(
        round=3,
        progress=Progress(best=0.1 + 0.2, best_round=2, stale=1),
        bytes_up=2**60,
        bytes_down=5,
        seconds=1 / 3,
        first_round_seconds=0.1,
        evaluation={"accuracy": 1 / 7},
    )
    for fault in (None, ClientFault("a", Fault.NON_FINITE), ClientFault("a", Fault.BUDGET_EXHAUSTED, refused=True)):
        state.note_client(1, "a", fault)
    again = RunState.from_json(json.loads(json.dumps(state.to_json())))
    assert again == state
    again.note_client(4, "a", None)
    assert again != state


@pytest.mark.parametrize("raw", [{}, {"rounds": 1}, {"progress": {"best": 1, "worst": 2}, "clients": {}}])
def test_something_else_is_no_book(raw: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError)):
        RunState.from_json(raw)
