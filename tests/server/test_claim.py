"""What a run claims, in codes for programs and words for people: never more than its conditions allow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from server.claim import Remark, assumptions, claim, disclosed, privacy_unit, withdrawn
from server.replies import ClientFault
from server.run_state import RunState
from shared_models.faults import Fault
from shared_models.plan import Plan
from tests.server.conftest import PRIVATE, head, make_plan
from tests.server.test_summary import PLAN, rows, state


def codes(remarks: list[Remark]) -> list[str]:
    return [remark.code for remark in remarks]


def the(code: str, remarks: list[Remark]) -> Remark:
    (found,) = [remark for remark in remarks if remark.code == code]
    return found


def people(bound: int) -> Plan:
    return make_plan(PRIVATE, {"data": {"person_column": "who", "max_rows_per_person": bound}})


# --- the unit -----------------------------------------------------------------------------------------------------


def test_rule_6_without_a_person_column_the_unit_is_a_record_not_a_person() -> None:
    assert privacy_unit(PLAN) == "record, not person"
    assert rows(PLAN, state(1, north=1))["north"]["person_epsilon"] is None


def test_rule_6_one_record_each_makes_the_unit_a_person() -> None:
    assert privacy_unit(people(1)) == "person, at most 1 record each"


@pytest.mark.parametrize(
    ("priced", "unit", "own"),
    [(5, "person, at most 5 records each", "person_epsilon"), (1, "record, not person", "record_epsilon")],
)
def test_rule_6_the_unit_is_a_person_only_if_all_of_a_persons_records_are_priced(
    monkeypatch: pytest.MonkeyPatch, priced: int, unit: str, own: str
) -> None:
    """The epsilon of one record must never be printed as that of a person who has five."""
    plan = people(5)
    release = plan.train_release()
    assert release is not None
    monkeypatch.setattr(Plan, "train_release", lambda _: replace(release, records_per_unit=priced))
    row = rows(plan, state(3, north=3))["north"]
    assert row["person_epsilon"] > 2 * row["record_epsilon"] > 0
    assert privacy_unit(plan) == unit
    assert row["epsilon"] == row[own]


# --- the claim ----------------------------------------------------------------------------------------------------


def test_a_claim_is_rounded_up_and_never_down() -> None:
    found = claim(PLAN, {"north": 1.2001, "south": 0.99999})
    assert found is not None
    assert "epsilon at most 1.21 at north, 1.00 at south," in found


def test_rule_6_a_claim_for_persons_says_how_many_records_they_may_have() -> None:
    found = claim(people(5), {"north": 1.0})
    assert found is not None
    assert found.startswith("each person is protected against everybody, the server included")
    assert "unit: person, at most 5 records each" in found


def test_rule_11_a_claim_prints_how_its_settings_were_chosen() -> None:
    for how in ("public", "charged", "uncharged"):
        assert f"selection: {how}" in str(claim(make_plan(PRIVATE, {"privacy": {"selection": how}}), {"north": 1.0}))


def test_rule_11_a_charged_choice_says_that_the_search_costs_more_than_this_run() -> None:
    codes = {
        how: {remark.code for remark in disclosed(make_plan(PRIVATE, {"privacy": {"selection": how}}))}
        for how in ("public", "charged", "uncharged")
    }
    kinds = {"selection-charged", "selection-uncharged"}
    assert {how: found & kinds for how, found in codes.items()} == {
        "public": set(),
        "charged": {"selection-charged"},
        "uncharged": {"selection-uncharged"},
    }


def test_of_many_clients_the_largest_is_claimed() -> None:
    found = claim(PLAN, {f"site-{number}": 1.0 + number / 100 for number in range(100)})
    assert found is not None
    assert "epsilon at most 1.99 at each of 100 clients" in found


def test_who_was_charged_nothing_is_not_in_the_claim() -> None:
    assert claim(PLAN, {"north": 0.0, "south": 0.0}) is claim(PLAN, {}) is None
    assert "north" not in str(claim(PLAN, {"north": 0.0, "south": 0.5}))


def test_there_is_no_claim_without_an_epsilon() -> None:
    with pytest.raises(ValueError, match="there is no claim"):
        claim(PLAN, {"north": 1.0, "south": None})


# --- what ends it -------------------------------------------------------------------------------------------------


def test_rule_9_a_simulation_and_noise_from_a_seed_end_every_claim() -> None:
    reproducible = make_plan(PRIVATE, {"privacy": {"noise": "reproducible"}})
    assert codes(withdrawn(PLAN, RunState())) == ["deployed"]
    assert codes(withdrawn(reproducible, RunState(), simulated=False)) == ["secret-noise"]
    assert withdrawn(PLAN, state(3, north=3), simulated=False) == []


def test_layers_in_bfloat16_end_the_claim_for_examples_and_not_that_for_clients() -> None:
    half = make_plan(PRIVATE, {"training": {"precision": "bfloat16"}})
    found = the("float32", withdrawn(half, state(3, north=3), simulated=False))
    assert "set training.precision to float32" in found.text
    whole = half.model_copy(update={"privacy": half.privacy.model_copy(update={"unit": "client"})})
    assert withdrawn(whole, state(3, north=3), simulated=False) == []


def test_rule_5_a_failure_withdraws_its_clients_claim_and_names_it() -> None:
    books = state(3, north=3, south=2, fault=ClientFault("south", Fault.CLIENT_FAILED))
    assert rows(PLAN, books)["south"]["withdrawn_rounds"] == [3]
    assert rows(PLAN, books)["north"]["withdrawn_rounds"] == []
    found = the("no-client-failed", withdrawn(PLAN, books))
    assert found.text == "failed, which may tell something of their data (rule 5): clients south"
    assert found.clients == ("south",)
    assert "no-client-failed" not in codes(withdrawn(PLAN, state(3, north=3)))


def test_what_left_unprotected_withdraws_its_clients_claim_and_is_named() -> None:
    plan = make_plan(PRIVATE, {"privacy": {"unprotected": ["train-loss"]}})
    books = state(3, north=3, south=3)
    assert "nothing-unprotected" not in codes(withdrawn(plan, books))  # no site let it out
    books.client("south").note_unprotected(2)
    found = the("nothing-unprotected", withdrawn(plan, books))
    assert found.text == "sent unprotected beside private updates (train-loss): clients south"
    assert (found.clients, dict(found.values)) == (("south",), {"fields": "train-loss"})
    shown = rows(plan, books)
    assert (shown["north"]["unprotected_rounds"], shown["south"]["unprotected_rounds"]) == ([], [2])


def test_a_ledger_that_contradicts_itself_withdraws_its_clients_claim() -> None:
    books = state(3, north=3, south=3)
    assert books.client("south").tell(2, epsilon=None, head=head(2))
    assert not books.client("south").tell(3, epsilon=None, head=head(1))
    assert the("ledgers-grow", withdrawn(PLAN, books)).clients == ("south",)
    assert rows(PLAN, books)["south"]["head"] == {"position": head(2).position, "hash": head(2).hash}


def test_clients_are_named_in_order_and_conditions_are_plain_json() -> None:
    (found,) = withdrawn(PLAN, RunState(), simulated=False, unstated=["south", "north"])
    assert found.to_json() == {
        "code": "stated",
        "text": "no verified statement: clients north, south",
        "clients": ["north", "south"],
    }
    assert Remark(code="timing", text="so it is").to_json() == {"code": "timing", "text": "so it is"}


# --- what it rests on, and what it leaves out ---------------------------------------------------------------------


def test_principle_3_what_nothing_proves_is_said() -> None:
    assert codes(assumptions(PLAN)) == ["noise-testimony", "batch-independence", "record-not-person"]
    assert codes(assumptions(people(2))) == ["noise-testimony", "batch-independence"]
    influence = the("batch-independence", assumptions(PLAN))
    assert set(influence.values) == {"most", "mostly"}
    assert all(part in influence.text for part in influence.values.values())


def test_rule_6_a_person_spread_over_clients_is_told_so() -> None:
    assert "rule 6" in the("several-clients", disclosed(people(2))).text
    assert "several-clients" not in codes(disclosed(PLAN))


def test_rules_11_and_12_what_is_not_covered_is_listed() -> None:
    assert [remark.text for remark in disclosed(PLAN)] == [
        "when a client answers is not protected (rule 12)",
        "the server's own evaluation data is not protected (rule 11)",
        "the reported figures are of the test records that also chose the best model",
        "hyper-parameters may have been chosen by looking at the data, uncharged (rule 11)",
    ]
    chosen = make_plan(PRIVATE, {"privacy": {"selection": "public"}, "evaluation": {"where": "none"}})
    assert codes(disclosed(chosen)) == ["timing"]


def test_the_names_of_natural_clients_are_values_in_the_data() -> None:
    """They are told to the server before anything is charged. Sites of a deployment have names of their own."""
    natural = make_plan(PRIVATE, {"data": {"partition": {"kind": "natural", "column": "hospital"}}})
    found = the("client-names", disclosed(natural))
    assert found.text == "the names of the clients are values of the column hospital and are not protected"
    assert dict(found.values) == {"column": "hospital"}
    assert "client-names" not in codes([*disclosed(PLAN), *disclosed(natural, simulated=False)])


@pytest.mark.parametrize(
    ("evaluation", "code"),
    [
        ({}, "test-records-best"),
        ({"target": 0.9}, "test-records-stop"),
        ({"patience": 2}, "test-records-stop"),
        ({"every": 9}, "test-records-best"),  # after rounds 9 and 10
        ({"every": 10}, None),  # after round 10 alone: one model, and no round left to stop before
        ({"every": 99, "target": 0.9}, None),
        ({"where": "none"}, None),
        ({"where": "clients"}, "test-records-best"),
    ],
)
def test_figures_of_test_records_that_chose_something_say_so(evaluation: dict[str, Any], code: str | None) -> None:
    plan = make_plan(PRIVATE, {"federation": {"rounds": 10}, "evaluation": evaluation})
    found = [remark for remark in disclosed(plan) if remark.code.startswith("test-records")]
    assert codes(found) == ([] if code is None else [code])
    assert all(("when to stop" in remark.text) is (code == "test-records-stop") for remark in found)
