"""The report of a run of secure sums: one client is the unit, enough honest clients are what it hangs on."""

from __future__ import annotations

import re
from typing import Any

import pytest

from privacy import accountant
from privacy.mechanisms import DiscreteGaussianSum
from privacy.report import facts_of_ledger, facts_of_run
from privacy.report.catalogue import LANGUAGES
from privacy.report.facts import Facts
from privacy.report.render import html
from tests.privacy.report.examples import DELTA, SITES, balance, charge, ledger, metrics, plan, remark, row, summary

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
