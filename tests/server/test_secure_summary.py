"""What a run of secure sums claims, of whom it must be believed, and what its summary says of the sums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import release_from_json
from server.claim import accountant_of, assumptions, claim, disclosed
from server.run_state import ClientTally, RunState
from server.summary import privacy_summary, releases_of, summarise
from shared_models.faults import Fault
from tests.server.conftest import Player
from tests.server.rounds.test_secure import SIX, play
from tests.server.secure_sites import Sites, says, secure_plan, silent
from tests.server.test_summary import validator

PLAN = secure_plan(federation={"rounds": 4}, secure_sum={"corrupt": 0.1, "spare_rounds": 1})


def state(*charged: int, again: tuple[int, ...] = (), rounds: int = 2) -> RunState:
    """The books of a run in which every client was charged alike."""
    found = RunState(round=rounds, begun=[*charged, *again])
    for client in SIX:
        found.clients[client] = ClientTally(charged=list(charged), again=list(again), rounds=len(charged))
    return found


def privacy(books: RunState, *, stopped: str | None = None, **more: Any) -> Mapping[str, Any]:
    statements = dict.fromkeys(SIX, "verified")
    given: dict[str, Any] = {"simulated": False, "statements": statements, **more}
    return privacy_summary(PLAN, books, stopped=stopped, clients=SIX, **given)


def test_a_deployed_run_claims_against_the_server_as_long_as_enough_clients_are_honest() -> None:
    found = privacy(state(1, 2, 3, 4, rounds=4))
    assert found["withdrawn"] == []
    assert (found["unit"], found["trust"]) == ("client, all that it holds", "distributed")
    assert found["claim"].startswith(
        "each client is protected against everybody, the server included, while in every sum at least 3 clients are "
        "honest and no more than 1 of a cohort of 6 collude with it, one that pries by itself included: epsilon at "
        "most "
    )
    assert (
        "(unit: client, all that it holds; relation: add or remove one unit, as a contribution that is there or all "
        "zeros; accountant: PLD, pessimistic, interval 0.001; selection: uncharged)" in found["claim"]
    )
    assert accountant_of(PLAN) == "PLD, pessimistic, interval 0.001"
    assert found["accountant"] == "PLD, pessimistic, interval 0.001; RDP beside it"


def test_rule_4_discrete_noise_is_claimed_by_its_bound_alone() -> None:
    plan = secure_plan(federation={"rounds": 4}, secure_sum={"noise": "discrete-gaussian"})
    found = privacy_summary(plan, state(1, 2, 3, 4, rounds=4), stopped=None, clients=SIX, simulated=False)
    assert found["accountant"] == accountant_of(plan) == "RDP, orders 1.1 to 1024"


def test_every_charged_attempt_is_in_the_figure() -> None:
    """The price of five sums, of which one was not opened."""
    release = PLAN.train_release()
    assert release is not None
    row = privacy(state(1, 2, 3, 4, again=(2,), rounds=4))["clients"][0]
    assert row["charged_rounds"] == 5
    assert row["epsilon"] == epsilon({release: 5}, PLAN.privacy.delta).epsilon
    assert (row["record_epsilon"], row["person_epsilon"]) == (None, None)
    assert dict(releases_of(PLAN, ClientTally(charged=[1], again=[1, 1]))) == {release: 3}


@pytest.mark.parametrize("stopped", ["target", "plateau", "failed"])
def test_rule_4_a_stop_that_may_depend_on_the_data_claims_the_planned_rounds(stopped: str) -> None:
    row = privacy(state(1, 2, again=(1,)), stopped=stopped)["clients"][0]
    assert row["charged_rounds"] == 5
    assert privacy(state(1, 2, again=(1,)), stopped="budget")["clients"][0]["charged_rounds"] == 3
    # A spare round that was not needed is claimed as well: whether a sum is repeated could depend on the data.
    assert privacy(state(1, 2), stopped=stopped)["clients"][0]["charged_rounds"] == 5


def test_the_sums_are_described_by_whole_numbers_and_their_price() -> None:
    found = privacy(state(1, 2, again=(1,)))["secure_sum"]
    parameters = PLAN.secure_parameters()
    assert {key: value for key, value in found.items() if key != "release"} == {
        "clients": 6,
        "honest": 3,
        "corrupt": 1,
        "holders": parameters.holders,
        "threshold": parameters.threshold,
        "least": parameters.least,
        "attempts": 3,
        "repeated": 1,
    }
    assert release_from_json(found["release"]) == PLAN.train_release()


def test_what_is_assumed_and_not_covered_is_said() -> None:
    assumed = {remark.code: remark for remark in assumptions(PLAN)}
    assert list(assumed) == ["noise-testimony", "secure-sum", "cryptography"]
    assert assumed["secure-sum"].values == {"honest": "3", "corrupt": "1", "clients": "6"}
    assert "at least 3 clients are honest" in assumed["secure-sum"].text
    codes = [remark.code for remark in disclosed(PLAN, simulated=False)]
    assert "participation" in codes
    assert "several-clients" in codes
    assert claim(PLAN, {}) is None


def test_a_client_that_failed_with_its_data_in_hand_withdraws_its_claim(tmp_path: Path) -> None:
    plan = secure_plan(federation={"rounds": 1})
    sites = Sites(plan, SIX).on("site-1", "masked", says(Fault.CLIENT_FAILED)).on("site-2", "masked", silent)
    played = play(Player(tmp_path), plan, sites)
    found = privacy_summary(plan, played.outcome.state, stopped=None, clients=SIX, simulated=False)
    assert {remark["code"]: remark.get("clients") for remark in found["withdrawn"]} == {
        "no-client-failed": ["site-1"],
        "stated": SIX,
    }


@pytest.mark.parametrize("phase", ["keys", "masked"])
def test_summary_and_metrics_are_as_their_schemas_say(tmp_path: Path, phase: str) -> None:
    plan = secure_plan(federation={"rounds": 3}, secure_sum={"spare_rounds": 1})
    sites = Sites(plan, SIX)
    for site in SIX[:4]:
        sites.on(site, phase, silent, attempt=1).on(site, phase, says(Fault.SECURE_SUM_REFUSED), attempt=2)
    played = play(Player(tmp_path), plan, sites)
    outcome = played.outcome
    for simulated in (True, False):
        found = summarise(
            plan,
            outcome.state,
            stopped=outcome.stopped,
            reason=outcome.reason,
            clients=SIX,
            startup_seconds=0.1,
            statements=dict.fromkeys(SIX, "verified"),
            simulated=simulated,
        )
        validator("summary").validate(found)
        assert (found["privacy"]["claim"] is None) == simulated
    lines = played.folder.read_metrics()
    assert len(lines) == 3
    for one in lines:
        validator("metrics").validate(one)
