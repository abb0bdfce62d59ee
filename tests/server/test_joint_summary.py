"""What a run of joint steps claims for records and for persons, and what is said where sums had no masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import DpSgd, RoundedGaussianSum, release_from_json
from server.claim import accountant_of, assumptions, claim, disclosed, privacy_unit, relation_of, withdrawn
from server.run_state import ClientTally, RunState
from server.summary import privacy_summary, releases_of, summarise
from shared_models.plan import Plan
from shared_models.plan_secure_sum import sum_release
from tests.server.rounds.test_unmasked import JOINT, SIX
from tests.server.secure_sites import secure_plan
from tests.server.test_summary import validator

FOUR: dict[str, Any] = {"federation": {"rounds": 4}}


def joint(**tables: Any) -> Plan:
    return secure_plan(**{**JOINT, **FOUR, **tables})


def people(most: int, **tables: Any) -> Plan:
    return joint(data={"person_column": "who", "max_rows_per_person": most}, **tables)


def state(*charged: int, evaluated: tuple[int, ...] = ()) -> RunState:
    found = RunState(round=len(charged), begun=list(charged))
    for client in SIX:
        found.clients[client] = ClientTally(charged=list(charged), evaluated=list(evaluated), rounds=len(charged))
    return found


def privacy(plan: Plan, books: RunState, *, stopped: str | None = None) -> Mapping[str, Any]:
    statements = dict.fromkeys(SIX, "verified")
    return privacy_summary(plan, books, stopped=stopped, clients=SIX, simulated=False, statements=statements)


# --- figures -------------------------------------------------------------------------------------------------------


def test_a_deployed_run_of_joint_steps_claims_for_records_against_the_server() -> None:
    plan = joint()
    found = privacy(plan, state(1, 2, 3, 4))
    assert found["withdrawn"] == []
    assert (found["unit"], found["trust"]) == ("record, not person", "distributed")
    assert found["claim"].startswith(
        "each record is protected against everybody, the server included, while in every sum at least 3 clients are "
        "honest and no more than 0 of a cohort of 6 collude with it, one that pries by itself included: epsilon at "
        "most "
    )
    assert (
        "(unit: record, not person; relation: add or remove one unit; accountant: PLD, pessimistic, interval 0.001; "
        "selection: uncharged)" in found["claim"]
    )


def test_of_a_record_it_is_not_said_that_it_is_there_or_all_zeros() -> None:
    """Who takes part in a sum is known; which records a client holds is not."""
    of_clients = secure_plan(**FOUR)
    epsilons = dict.fromkeys(SIX, 1.0)
    assert "as a contribution that is there or all zeros" in str(claim(of_clients, epsilons))
    assert "zeros" not in str(claim(joint(), epsilons))
    assert relation_of(joint()) == relation_of(of_clients) == "add or remove one unit"


def test_rule_4_joint_steps_are_claimed_by_loss_distributions() -> None:
    plan = joint()
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    row = privacy(plan, state(1, 2, 3))["clients"][0]
    assert row["epsilon"] == row["record_epsilon"] == epsilon({release: 3}, plan.privacy.delta).epsilon
    assert row["rdp_epsilon"] > row["epsilon"]
    assert row["person_epsilon"] is None
    assert accountant_of(plan).startswith("PLD")
    assert dict(releases_of(plan, ClientTally(charged=[1, 2]))) == {release: 2}


def test_rule_6_a_record_and_a_person_stand_side_by_side() -> None:
    """The person's price is that of three clipped gradients at once; the record's is what the same sums cost one."""
    plan = people(3)
    row = privacy(plan, state(1, 2, 3, 4))["clients"][0]
    delta = plan.privacy.delta
    assert row["epsilon"] == row["person_epsilon"] == epsilon({sum_release(plan): 4}, delta).epsilon
    assert row["record_epsilon"] == epsilon({sum_release(plan, records=1): 4}, delta).epsilon
    assert row["record_epsilon"] == privacy(joint(), state(1, 2, 3, 4))["clients"][0]["epsilon"]
    assert row["person_epsilon"] > 2.5 * row["record_epsilon"]
    assert privacy_unit(plan) == "person, at most 3 records each"
    assert "each person is protected" in str(privacy(plan, state(1, 2, 3, 4))["claim"])


def test_rule_6_a_price_of_one_record_is_never_printed_as_a_persons(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = people(3)
    of_record = sum_release(plan, records=1)
    monkeypatch.setattr(Plan, "train_release", lambda _: of_record)
    assert privacy_unit(plan) == "record, not person"


def test_counts_of_clients_are_priced_beside_the_steps_for_records_and_persons() -> None:
    plan = people(2, evaluation={"where": "clients", "every": 2})
    counts, release = plan.evaluate_release(), plan.train_release()
    assert counts is not None
    assert release is not None
    row = privacy(plan, state(1, 2, 3, 4, evaluated=(2, 4)))["clients"][0]
    assert (row["charged_rounds"], row["charged_evaluations"]) == (4, 2)
    assert row["person_epsilon"] == epsilon({release: 4, counts: 2}, plan.privacy.delta).epsilon
    assert row["record_epsilon"] < row["person_epsilon"]


@pytest.mark.parametrize("stopped", ["target", "plateau", "failed"])
def test_rule_4_a_stop_that_may_depend_on_the_data_claims_the_planned_steps(stopped: str) -> None:
    row = privacy(joint(), state(1, 2), stopped=stopped)["clients"][0]
    assert row["charged_rounds"] == 4
    assert row["epsilon"] == privacy(joint(), state(1, 2, 3, 4))["clients"][0]["epsilon"]


def test_sampled_steps_cost_what_central_dp_sgd_costs() -> None:
    training = {**JOINT["training"], "sample_rate": 0.05}
    plan = joint(training=training)
    row = privacy(plan, state(1, 2, 3, 4))["clients"][0]
    central = DpSgd(noise_multiplier=4.0, sample_rate=0.05, steps=4)
    assert row["epsilon"] == pytest.approx(epsilon([central], plan.privacy.delta).epsilon, abs=1e-3)


def test_the_summary_of_joint_steps_is_as_its_schema_says() -> None:
    for plan in (joint(), people(3), joint(training={**JOINT["training"], "sample_rate": 0.5})):
        found = summarise(
            plan,
            state(1, 2, 3, 4),
            stopped=None,
            reason=None,
            clients=SIX,
            startup_seconds=0.1,
            statements=dict.fromkeys(SIX, "verified"),
            simulated=False,
        )
        validator("summary").validate(found)
        own = found["privacy"]
        assert own["claim"] is not None
        assert (own["steps_a_round"], own["sample_rate"]) == (1, plan.training.sample_rate)
        assert own["noise_multiplier"] == plan.privacy.noise_multiplier == 4.0  # over what a record moves
        assert own["accountant"] == "PLD, pessimistic, interval 0.001; RDP beside it"
        assert release_from_json(own["secure_sum"]["release"]) == plan.train_release()


# --- what it rests on ----------------------------------------------------------------------------------------------


def codes(remarks: Any) -> list[str]:
    return [remark.code for remark in remarks]


def test_what_joint_steps_rest_on_is_that_of_dp_sgd_and_of_secure_sums() -> None:
    assert codes(assumptions(joint())) == [
        "noise-testimony",
        "batch-independence",
        "secure-sum",
        "cryptography",
        "record-not-person",
    ]
    assert "record-not-person" not in codes(assumptions(people(3)))
    assert "participation" in codes(disclosed(joint(), simulated=False))
    assert "several-clients" in codes(disclosed(people(3), simulated=False))
    assert "several-clients" not in codes(disclosed(joint(), simulated=False))


@pytest.mark.parametrize("unit", ["client", "example"])
def test_sums_without_masks_withdraw_the_claim(unit: str) -> None:
    tables = JOINT if unit == "example" else {}
    plan = secure_plan(secure_sum={"masks": False}, **{**tables, **FOUR})
    found = privacy(plan, state(1, 2, 3, 4))
    assert [remark["code"] for remark in found["withdrawn"]] == ["masked"]
    assert found["claim"] is None
    assert found["epsilon_max"] is not None  # what a run with masks would have cost
    with_masks = secure_plan(**{**tables, **FOUR})
    assert found["clients"] == privacy(with_masks, state(1, 2, 3, 4))["clients"]
    assert codes(withdrawn(with_masks, state(1), simulated=False)) == []


def test_a_release_is_one_fact_whatever_the_tally() -> None:
    plan = joint()
    assert Counter(dict(releases_of(plan, ClientTally(charged=[1, 2], again=[2])))) == {plan.train_release(): 3}
