"""A run's books: who was charged, who refused, whose claim is withdrawn, whose ledger contradicts itself."""

from __future__ import annotations

import json

import pytest

from server.replies import ClientFault, Head
from server.run_state import ClientTally, RunState
from server.stopping import Progress
from shared_models.faults import Fault
from tests.server.conftest import head

REFUSALS = tuple(code for code in Fault if code.is_refusal)


def after(*faults: ClientFault | None) -> tuple[RunState, ClientTally]:
    state = RunState()
    for number, fault in enumerate(faults, start=1):
        state.note_client(number, "a", fault)
    return state, state.clients["a"]


def test_each_run_has_an_id_of_its_own() -> None:
    """By it clients tell a request that is made again from a new one."""
    assert len({RunState().run for _ in range(100)}) == 100


def test_a_good_round_is_charged() -> None:
    state, tally = after(None, None)
    assert tally == ClientTally(charged=[1, 2])
    assert state.faults == []


@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_not_charged_and_withdraws_nothing(code: Fault) -> None:
    state, tally = after(ClientFault("a", code, refused=True))
    assert tally == ClientTally(refused=[1])
    assert state.faults == [{"round": 1, "client": "a", "reason": code.reason}]


@pytest.mark.parametrize("code", [code for code in Fault if code is not Fault.TIMED_OUT])
def test_rule_5_any_other_failure_is_charged_and_withdraws_the_claim_for_the_round(code: Fault) -> None:
    state, tally = after(None, ClientFault("a", code))
    assert tally == ClientTally(charged=[1, 2], withdrawn=[2])
    assert state.faults == [{"round": 2, "client": "a", "reason": code.reason}]


def test_rule_12_a_missed_deadline_is_charged_and_withdraws_nothing() -> None:
    """When a client answers is listed as unprotected in every summary."""
    assert after(ClientFault("a", Fault.TIMED_OUT))[1] == ClientTally(charged=[1])


def test_principle_5_a_round_played_again_is_charged_once() -> None:
    """Its clients know the request again, and work under the reservation they have."""
    state = RunState()
    for fault in (ClientFault("a", Fault.CLIENT_FAILED), ClientFault("a", Fault.CLIENT_FAILED), None):
        state.note_client(3, "a", fault)
    assert state.clients["a"] == ClientTally(charged=[3], withdrawn=[3])
    for _ in range(2):
        state.note_client(4, "a", ClientFault("a", Fault.BUDGET_EXHAUSTED, refused=True))
    assert state.clients["a"].refused == [4]


def test_evaluations_are_charged_by_the_same_rules_and_beside_the_training() -> None:
    state = RunState()
    state.note_client(1, "a", None)
    for number, fault in enumerate(
        (None, None, ClientFault("a", Fault.CLIENT_FAILED), ClientFault("a", Fault.BUDGET_EXHAUSTED, refused=True)), 1
    ):
        state.note_evaluation(number, "a", fault)
        state.note_evaluation(number, "a", fault)
    assert state.clients["a"] == ClientTally(charged=[1], evaluated=[1, 2, 3], withdrawn=[3], refused=[4])


def test_what_left_unprotected_is_noted_once_a_round() -> None:
    tally = ClientTally()
    for number in (1, 2, 2):
        tally.note_unprotected(number)
    assert tally.unprotected == [1, 2]


# --- what a client tells of its ledger ----------------------------------------------------------------------------


def test_the_newest_entry_and_the_largest_epsilon_are_kept() -> None:
    tally = ClientTally()
    for number, epsilon in ((1, 0.5), (2, 1.5), (3, None), (4, 1.0)):
        assert tally.tell(number, epsilon=epsilon, head=head(number))
    assert (tally.reported, tally.head) == (1.5, head(4))


def test_the_same_reply_sent_again_is_no_contradiction() -> None:
    """As after a crash: the stored one."""
    tally = ClientTally()
    assert [tally.tell(2, epsilon=0.5, head=head(2)) for _ in range(2)] == [True, True]
    assert tally.contradicted == []


@pytest.mark.parametrize(
    "told", [head(2), Head(head(5).position, "0" * 64), Head(0, head(5).hash)], ids=["older", "rewritten", "moved"]
)
def test_a_chain_that_shrinks_or_changes_is_a_contradiction(told: Head) -> None:
    """And what was known before stays known, so that the client is reminded of it."""
    tally = ClientTally()
    assert tally.tell(5, epsilon=None, head=head(5))
    assert not tally.tell(6, epsilon=9.0, head=told)
    assert not tally.tell(6, epsilon=None, head=told)
    assert tally == ClientTally(contradicted=[6], head=head(5), reported=9.0)


# --- on disk ------------------------------------------------------------------------------------------------------


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
    state.client("a").tell(1, epsilon=1 / 3, head=head(1))
    state.note_evaluation(1, "b", None)
    again = RunState.from_json(json.loads(json.dumps(state.to_json())))
    assert again == state
    again.note_client(4, "a", None)
    assert again != state


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"rounds": 1},
        {"progress": {"best": 1, "worst": 2}, "clients": {}},
        {"progress": {}, "clients": {"a": {"rounds": 1, "charged": 1}}},
    ],
)
def test_something_else_is_no_book(raw: dict[str, object]) -> None:
    with pytest.raises((TypeError, KeyError)):
        RunState.from_json(raw)
