"""What a run under a trusted server claims, of whom it must be believed, and what its summary keeps to itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from privacy.accountant import epsilon
from server.claim import accountant_of, assumptions, disclosed, relation_of, withdrawn
from server.replies import Head
from server.run_state import ClientTally, RunState
from server.summary import privacy_summary, summarise
from shared_models.plan import Plan
from tests.server.conftest import FakeGrid, Player
from tests.server.rounds.test_central import ALL, POISSON, SIX, Clients, plan_of
from tests.server.test_summary import validator

FIXED = {"sampling": "fixed", "size": 3}
COHORTS = {"poisson": POISSON, "fixed": FIXED, "all": ALL}


def plan(kind: str, **privacy: Any) -> Plan:
    return plan_of(COHORTS[kind], privacy={"noise": "secret", **privacy}, federation={"rounds": 4})


def books(rounds: int, *, failing: bool = False) -> RunState:
    """Of a run in which everybody was charged for every round, and only some took part."""
    found = RunState(round=rounds)
    for number, client in enumerate(SIX):
        position = 3 + 2 * number
        charged = list(range(1, rounds + 1 + failing))
        found.clients[client] = ClientTally(charged=charged, head=Head(position, f"{position:064x}"))
    return found


def privacy(found: Plan, state: RunState, *, stopped: str | None = None) -> Mapping[str, Any]:
    statements = dict.fromkeys(SIX, "verified")
    return privacy_summary(found, state, stopped=stopped, clients=SIX, simulated=False, statements=statements)


@pytest.mark.parametrize(
    ("kind", "against", "relation", "accountant"),
    [
        (
            "poisson",
            "the server is trusted and none of them learns who took part in a round: epsilon",
            "add or remove one unit",
            "PLD, pessimistic, interval 0.001",
        ),
        (
            "fixed",
            "the server is trusted and none of them learns who took part in a round: epsilon",
            "replace one unit",
            "RDP, orders 1.1 to 1024",
        ),
        ("all", "the server is trusted: epsilon", "add or remove one unit", "PLD, pessimistic, interval 0.001"),
    ],
)
def test_a_deployed_run_claims_against_who_sees_the_models_and_prints_its_relation(
    kind: str, against: str, relation: str, accountant: str
) -> None:
    found = plan(kind)
    said = privacy(found, books(4))
    assert said["withdrawn"] == []
    assert said["claim"].startswith(f"each client is protected against everybody who sees the models, while {against}")
    assert f"relation: {relation}; accountant: {accountant};" in said["claim"]
    assert (said["relation"], relation_of(found), accountant_of(found)) == (relation, relation, accountant)
    release = found.train_release()
    assert release is not None
    assert said["epsilon_max"] == epsilon({release: 4}, found.privacy.delta).epsilon
    assert said["central"]["release"] == release.to_json()


def codes(remarks: list[Any]) -> list[str]:
    return [remark.code for remark in remarks]


@pytest.mark.parametrize(("kind", "secret"), [("poisson", True), ("fixed", True), ("all", False)])
def test_the_server_must_be_trusted_and_where_it_counts_nobody_may_know_who_took_part(kind: str, secret: bool) -> None:
    assumed = assumptions(plan(kind))
    assert codes(assumed) == ["server-trusted", *(["cohort-secret"] if secret else [])]
    found = next(remark for remark in disclosed(plan(kind), simulated=False) if remark.code == "membership")
    assert ("known to the server, and to each client of itself" in found.text) == secret


def test_all_others_together_would_know_of_a_fixed_cohort() -> None:
    (text,) = [remark.text for remark in assumptions(plan("fixed")) if remark.code == "cohort-secret"]
    assert "all other clients together would know it" in text
    assert all("all other clients" not in remark.text for remark in assumptions(plan("poisson")))


def correlated() -> Plan:
    return plan_of(
        {"sampling": "fixed", "size": 2},
        privacy={"noise": "secret", "correlated": {"band": 3}},
        federation={"rounds": 4},
    )


def test_with_correlated_noise_nothing_is_claimed_from_chance_and_a_schema_is_assumed() -> None:
    found = correlated()
    said = privacy(found, books(4))
    assert said["withdrawn"] == []
    assert "none of them learns who took part" not in said["claim"]
    assert (
        "relation: add or remove one unit, as a contribution that is there or all zeros; accountant: PLD"
        in (said["claim"])
    )
    assert codes(assumptions(found)) == ["server-trusted", "participation-schema"]
    schema = assumptions(found)[1]
    assert dict(schema.values) == {"most": "2", "separation": "3"}
    assert "no client to take part more than 2 times in the run, nor within 3 rounds of the time before" in schema.text
    assert "participation" in codes(disclosed(found, simulated=False))
    assert "membership" not in codes(disclosed(found, simulated=False))


@pytest.mark.parametrize("stopped", ["target", "failed", "budget", None])
def test_a_run_that_is_one_release_costs_the_same_wherever_it_stops(stopped: str | None) -> None:
    found = correlated()
    release = found.train_release()
    assert release is not None
    said = privacy(found, books(2), stopped=stopped)
    assert said["epsilon_max"] == epsilon({release: 1}, found.privacy.delta).epsilon
    assert {row["charged_rounds"] for row in said["clients"]} == {4}
    assert privacy(found, RunState(), stopped="failed")["epsilon_max"] == 0


def test_reproducible_noise_and_a_simulation_end_the_claim() -> None:
    found = withdrawn(plan("poisson", noise="reproducible"), books(4))
    assert codes(found) == ["deployed", "secret-noise"]


@pytest.mark.parametrize(("stopped", "covered"), [("target", 4), ("failed", 4), ("budget", 2), (None, 2)])
def test_rule_4_a_stop_that_may_depend_on_data_claims_the_planned_rounds(stopped: str | None, covered: int) -> None:
    said = privacy(plan("poisson"), books(2, failing=stopped == "failed"), stopped=stopped)
    assert {row["charged_rounds"] for row in said["clients"]} == {covered}


@pytest.mark.parametrize("kind", ["poisson", "fixed"])
def test_rule_3_the_summary_says_the_same_of_everybody(kind: str) -> None:
    rows = [{**row, "id": ""} for row in privacy(plan(kind), books(4))["clients"]]
    assert all(row == rows[0] for row in rows)
    assert (rows[0]["rounds"], rows[0]["head"]) == (None, None)


@pytest.mark.parametrize("kind", sorted(COHORTS))
def test_summary_and_metrics_are_as_their_schemas_say(play: Player, kind: str) -> None:
    found = plan(kind)
    played = play(found, FakeGrid(SIX, Clients()))
    for simulated in (True, False):
        said = summarise(
            found,
            played.outcome.state,
            stopped=None,
            reason=None,
            clients=SIX,
            startup_seconds=0.1,
            statements=dict.fromkeys(SIX, "verified"),
            simulated=simulated,
        )
        validator("summary").validate(said)
        assert (said["privacy"]["claim"] is None) == simulated
        assert said["bytes"] == {"up": None, "down": None}
        assert (said["seconds"]["first_round"] is None) == (kind != "all")
    for line in played.folder.read_metrics():
        validator("metrics").validate(line)
