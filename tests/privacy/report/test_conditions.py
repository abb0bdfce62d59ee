"""Whatever a summary says for or against a claim comes out of the report, known code or not."""

from __future__ import annotations

from typing import Any

import pytest

from privacy.report import conditions as needs
from privacy.report.catalogue import LANGUAGES, catalogue
from privacy.report.facts import Condition, ConditionStatus
from server.claim import NO_PRIVACY, Remark, assumptions, disclosed, withdrawn
from server.run_state import ClientTally, RunState
from tests.privacy.report.examples import remark
from tests.server.conftest import PRIVATE, make_plan


def remarks() -> list[tuple[Remark, ConditionStatus]]:
    """All that the server says."""
    plan = make_plan(
        {
            "data": {
                "partition": {"kind": "natural", "column": "clinic"},
                "person_column": "p",
                "max_rows_per_person": 2,
            }
        },
        PRIVATE,
        {"privacy": {"noise": "reproducible", "selection": "uncharged"}, "federation": {"rounds": 10}},
        {"evaluation": {"baselines": True, "patience": 3}},
    )
    calm = make_plan(PRIVATE, {"federation": {"rounds": 10}})
    tally = ClientTally(withdrawn=[4], unprotected=[4], contradicted=[4])
    state = RunState(round=4, clients={"north": tally})
    lacking = withdrawn(plan, state, unpriced=["south"], unstated=["west"], gaps=["east"])
    found: list[tuple[Remark, ConditionStatus]] = [(one, "not-met") for one in (NO_PRIVACY, *lacking)]
    found += [(one, "outside") for one in (*disclosed(plan), *disclosed(calm))]
    found += [(one, "assumed") for one in assumptions(calm)]
    return list({one.code: (one, status) for one, status in found}.values())


@pytest.mark.parametrize(("said", "status"), remarks(), ids=lambda value: getattr(value, "code", value))
def test_every_remark_of_the_summary_is_known_with_its_clients_and_values(
    said: Remark, status: ConditionStatus
) -> None:
    found = needs.recognise(said.to_json(), status)
    assert (found.code, found.status, found.text) == (said.code, status, None)
    assert (found.clients, found.values) == (said.clients, said.values)
    for language in LANGUAGES:
        for kind in ("need", "fail"):
            assert catalogue(language)(f"condition.{found.code}.{kind}", **found.values)


def test_all_the_server_can_say_was_looked_at() -> None:
    assert len(remarks()) == 20


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_known_codes_are_those_that_there_are_words_for(language: str) -> None:
    texts = catalogue(language).texts
    assert {key.split(".")[1] for key in texts if key.startswith("condition.")} == needs.CODES
    assert all(f"condition.{code}.{kind}" in texts for code in needs.CODES for kind in ("need", "fail"))


def test_a_code_that_nobody_knows_keeps_its_sentence() -> None:
    found = needs.recognise(remark("full-moon", "the moon was full", "north"), "not-met")
    assert found == Condition(code="full-moon", status="not-met", clients=("north",), text="the moon was full")


@pytest.mark.parametrize(
    ("sentence", "code"),
    [
        ("simulated, not a claim: all clients ran in one place", "deployed"),
        ("the noise follows from the plan's seed, which others may know", "secret-noise"),
        ("failed, which may tell something of their data (rule 5): clients north", "other"),
    ],
)
def test_a_sentence_of_an_early_summary_is_kept_or_known_and_concerns_everybody(sentence: str, code: str) -> None:
    found: Any = needs.recognise(sentence, "not-met")
    assert (found.code, found.status, found.clients) == (code, "not-met", ())
    assert found.text == (sentence if code == "other" else None)


def test_of_two_words_on_one_condition_the_worse_counts() -> None:
    met, broken = Condition(code="x", status="met"), Condition(code="x", status="not-met", clients=("a",))
    other = Condition(code="x", status="not-met", clients=("b",))
    assert needs.merged([met, broken]) == needs.merged([broken, met]) == [broken]
    assert needs.merged([broken, met, other])[0].clients == ("a", "b")


def test_a_reason_for_everybody_outweighs_one_for_some() -> None:
    some, everybody = Condition(code="x", status="not-met", clients=("a",)), Condition(code="x", status="not-met")
    assert needs.merged([some, everybody]) == needs.merged([everybody, some]) == [everybody]
