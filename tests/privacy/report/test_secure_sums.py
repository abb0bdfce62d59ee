"""The report of a run of secure sums: one client is the unit, enough honest clients are what it hangs on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from privacy import accountant
from privacy.mechanisms import DiscreteGaussianSum, NoisyCounts, RoundedGaussianSum
from privacy.report import facts_of_ledger, facts_of_run
from privacy.report.catalogue import LANGUAGES
from privacy.report.conditions import BATCH_INFLUENCE
from privacy.report.facts import Facts
from privacy.report.render import html
from tests.privacy.report.examples import DELTA, SITES, balance, charge, ledger, metrics, plan, remark, row, summary
from tests.privacy.report.test_render import text_of

SUM = DiscreteGaussianSum(noise_share=2000.0, honest=3, l2_sensitivity=1024.0, dimension=650)
VALUES = {"honest": "3", "corrupt": "1", "clients": "6"}
ASSUMED = [
    remark("noise-testimony"),
    {**remark("secure-sum", "at least 3 clients are honest"), "values": VALUES},
    remark("cryptography"),
]


def run(rounds: int = 4, *, ledgers: bool = False, **more: Any) -> Facts:
    """A deployed run of six sites, each charged in every round."""
    spent = accountant.epsilon({SUM: rounds}, DELTA).epsilon
    rows = [row(site, rounds) | {"epsilon": spent, "record_epsilon": None, "budget": 2 * spent} for site in SITES]
    privacy = {
        "unit": "client, all that it holds",
        "trust": "distributed",
        "accountant": "RDP, orders 1.1 to 1024",
        "sample_rate": 1.0,
        "steps_a_round": 1,
        "noise_multiplier": SUM.noise_multiplier,
        "assumptions": ASSUMED,
        "disclosed": [remark("participation")],
        "secure_sum": {"honest": 3, "corrupt": 1, "clients": 6, "release": SUM.to_json()},
    }
    found = summary(rows, rounds=rounds, **{**privacy, **more})
    charges = tuple(charge(n, SUM, unit="client", trust="distributed") for n in range(1, rounds + 1))
    views = [ledger(site, rounds, charges=charges) for site in SITES] if ledgers else []
    table = {"honest": 0.5, "corrupt": 0.1, "noise": "discrete-gaussian", "noise_share": 2000.0}
    given = {**plan(), "privacy": {**plan()["privacy"], "unit": "client", "trust": "distributed"}, "secure_sum": table}
    return facts_of_run(plan=given, summary=found, metrics=metrics(rounds), ledgers=views)


@pytest.mark.parametrize("ledgers", [False, True], ids=["of a server", "with ledgers"])
def test_its_epsilon_is_that_of_the_sums_and_protects_a_client(ledgers: bool) -> None:
    facts = run(ledgers=ledgers)
    (found,) = facts.balances
    assert facts.status == "stands"
    assert (found.basis.unit, found.basis.trust) == ("client", "distributed")
    assert found.verdict.epsilon == accountant.epsilon({SUM: 4}, DELTA).epsilon
    assert [(one.mechanism, one.most, one.total) for one in facts.charged] == [
        ("discrete-gaussian-sum", 4, 4 * len(SITES))
    ]
    assert {(one.who, one.outcome) for one in found.coalitions} >= {("server", "stands"), ("clients", "depends")}
    assert next(one for one in found.coalitions if one.who == "clients").values == VALUES


@pytest.mark.parametrize("who", ["all other clients together", "the server and other clients together"])
def test_a_coalition_breaks_the_claim_when_more_collude_than_the_plan_allows(who: str) -> None:
    """Three of six stay honest when three collude, and yet a sum of four may then have one honest client in it."""
    (said,) = re.findall(rf"{who}</th><td>.*?</td>", html(run()))
    assert "stands while at most 1 of 6 clients collude, and at least 3 honest ones are in every sum" in said


@pytest.mark.parametrize("ledgers", [False, True], ids=["of a server", "with ledgers"])
def test_what_is_computed_by_renyi_divergences_is_not_said_to_be_by_others_nor_to_check_itself(ledgers: bool) -> None:
    (found,) = run(ledgers=ledgers).balances
    assert found.meaning is not None
    assert found.meaning.source == "rdp"
    assert [(one.accountant, one.claimed) for one in found.estimates] == [("RDP, orders 1.1 to 1024", True)]


def test_nor_by_the_report_of_a_ledger() -> None:
    charges = tuple(charge(n, SUM, unit="client", trust="distributed") for n in range(1, 5))
    view = ledger(SITES[0], 4, charges=charges, balances=(balance({SUM: 4}, unit="client", trust="distributed"),))
    (found,) = facts_of_ledger(name="x", ledgers=[view]).balances
    assert [one.accountant for one in found.estimates if not one.claimed] == ["RDP, orders 1.1 to 1024"]


def test_its_conditions_are_those_of_a_sum_and_not_of_an_example() -> None:
    statuses = {one.code: one.status for one in run().conditions}
    assert statuses["secure-sum"] == statuses["cryptography"] == statuses["noise-testimony"] == "assumed"
    assert statuses["participation"] == "outside"
    assert not {"batch-independence", "record-not-person", "person-bounded", "honest-clients"} & statuses.keys()


def test_a_summary_that_names_no_numbers_leaves_the_honest_clients_unchecked() -> None:
    statuses = {one.code: one.status for one in run(assumptions=[]).conditions}
    assert statuses["honest-clients"] == "unchecked"


def test_the_protocols_own_words_are_listed_as_public() -> None:
    for ledgers in (False, True):
        words = [one for one in run(ledgers=ledgers).released if one.name == "config.secure-message"]
        assert [(one.kind, one.count, one.recorded) for one in words] == [("public", None, False)]


def test_its_parameters_are_those_of_the_sum_and_not_of_the_training() -> None:
    keys = {one.key for one in run().parameters}
    assert {"secure_sum.honest", "secure_sum.corrupt", "secure_sum.noise_share"} <= keys
    assert not {key for key in keys if key.startswith("training.")}


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ("en", "In every sum at least 3 clients are honest"),
        ("zh", "每次求和中至少有 3 个客户端是诚实的"),
    ],
)
def test_every_language_has_its_words(language: str, says: str) -> None:
    assert language in LANGUAGES
    assert says in html(run(), language=language)


# --- joint steps: records under secure sums ------------------------------------------------------------------------

ONE, THREE = (
    RoundedGaussianSum(
        noise_share=2000.0, honest=3, l2_sensitivity=1024.0 * records, dimension=650, records_per_unit=records
    )
    for records in (1, 3)
)
COUNTS = NoisyCounts(noise=30.0, counts=2, records_per_unit=3)


def joint(*, people: bool, ledgers: bool = False, evaluated: int = 0, masks: bool = True, **more: Any) -> Facts:
    """A deployed run of joint steps: four rounds of six sites."""
    release = THREE if people else ONE
    charged = {release: 4, COUNTS: evaluated} if evaluated else {release: 4}
    own, of_record = accountant.epsilon(charged, DELTA), accountant.epsilon({ONE: 4}, DELTA)
    rows = [
        row(site, 4)
        | {
            "epsilon": own.epsilon,
            "rdp_epsilon": own.rdp_epsilon,
            "record_epsilon": of_record.epsilon,
            "person_epsilon": own.epsilon if people else None,
            "budget": 2 * own.epsilon,
            "charged_evaluations": evaluated,
        }
        for site in SITES
    ]
    privacy = {
        "unit": "person, at most 3 records each" if people else "record, not person",
        "trust": "distributed",
        "accountant": "PLD, pessimistic, interval 0.001; RDP beside it",
        "sample_rate": 1.0,
        "steps_a_round": 1,
        "noise_multiplier": release.noise_multiplier,
        "assumptions": [ASSUMED[0], {**remark("batch-independence"), "values": BATCH_INFLUENCE}, *ASSUMED[1:]],
        "disclosed": [remark("participation")],
        "secure_sum": {"honest": 3, "corrupt": 1, "clients": 6, "release": release.to_json()},
    }
    found = summary(rows, rounds=4, **{**privacy, **more})
    unit = "person:3" if people else "record"
    charges = tuple(charge(n, release, unit=unit, trust="distributed") for n in range(1, 5))
    views = [ledger(site, 4, charges=charges) for site in SITES] if ledgers else []
    given = {
        **plan(),
        "privacy": {**plan()["privacy"], "unit": "example", "trust": "distributed"},
        "evaluation": {"where": "clients", "count_noise": 30.0} if evaluated else {"where": "server"},
        "secure_sum": {
            "honest": 0.5,
            "corrupt": 0.1,
            "noise": "rounded-gaussian",
            "noise_share": 2000.0,
            "masks": masks,
        },
    }
    return facts_of_run(plan=given, summary=found, metrics=metrics(4), ledgers=views)


@pytest.mark.parametrize("people", [False, True], ids=["records", "persons"])
@pytest.mark.parametrize("ledgers", [False, True], ids=["of a server", "with ledgers"])
def test_joint_steps_have_the_price_of_one_gaussian_and_rdp_beside_it(people: bool, ledgers: bool) -> None:
    facts = joint(people=people, ledgers=ledgers)
    (found,) = facts.balances
    assert facts.status == "stands"
    assert (found.basis.unit, found.basis.trust) == ("person:3" if people else "record", "distributed")
    assert found.verdict.epsilon == accountant.epsilon({THREE if people else ONE: 4}, DELTA).epsilon
    assert [(one.accountant[:3], one.claimed) for one in found.estimates] == [("PLD", True), ("RDP", False)]
    assert found.meaning is not None
    assert found.meaning.source != "rdp"
    assert [(one.mechanism, one.most) for one in facts.charged] == [("rounded-gaussian-sum", 4)]


def test_the_counts_of_joint_runs_are_in_the_curve_and_the_meaning() -> None:
    """Without ledgers the report knows both releases by plan and summary."""
    (found,) = joint(people=True, evaluated=2).balances
    assert found.verdict.epsilon == accountant.epsilon({THREE: 4, COUNTS: 2}, DELTA).epsilon
    assert found.curve


def test_a_record_and_a_person_of_joint_steps_stand_side_by_side() -> None:
    page = text_of(html(joint(people=True)))
    record, person = (accountant.epsilon({release: 4}, DELTA).epsilon for release in (ONE, THREE))
    shown = re.search(
        r"One record\s+ε\s≤\s([\d.]+)\s+One person, at most 3 records at this client\s+ε\s≤\s([\d.]+)", page
    )
    assert shown is not None
    assert [float(shown[i]) for i in (1, 2)] == pytest.approx([record, person], abs=0.01)
    assert "One person" not in text_of(html(joint(people=False)))


def test_what_joint_steps_rest_on_is_of_examples_and_of_sums() -> None:
    statuses = {one.code: one.status for one in joint(people=False).conditions}
    assert statuses["batch-independence"] == statuses["secure-sum"] == statuses["record-not-person"] == "assumed"
    assert statuses["masked"] == statuses["public-constants"] == "met"
    assert {one.code: one.status for one in joint(people=True).conditions}["person-bounded"] == "met"
    keys = {one.key for one in joint(people=False).parameters}
    assert {"training.sample_rate", "training.expected_batch_size", "secure_sum.honest", "secure_sum.masks"} <= keys


def test_a_run_without_masks_claims_nothing_and_lists_no_words_of_a_protocol() -> None:
    lacking = [remark("masked", "what clients put into sums had no masks")]
    facts = joint(people=False, masks=False, withdrawn=lacking, claim=None, setting="simulation")
    assert facts.status != "stands"
    assert {one.code: one.status for one in facts.conditions}["masked"] == "not-met"
    assert [one for one in facts.released if one.name == "config.secure-message"] == []
    assert [one.status for one in facts.parameters if one.key == "secure_sum.masks"] == ["not-met"]


@pytest.mark.parametrize(
    ("language", "says"),
    [
        ("en", ["sum of rounded Gaussians", "What clients put into sums is under masks.", "at most 3 records"]),
        ("zh", ["取整高斯之和", "客户端放入求和的内容都有掩码", "至多 3 条记录"]),
    ],
)
def test_joint_runs_have_words_in_every_language(language: str, says: list[str]) -> None:
    page = text_of(html(joint(people=True), language=language))
    assert [words for words in says if words not in page] == []
    lacking = [remark("masked", "what clients put into sums had no masks")]
    other = text_of(html(joint(people=True, masks=False, withdrawn=lacking, claim=None), language=language))
    assert {"en": "the server saw each of them", "zh": "服务器看到了每一份"}[language] in other
