"""Whatever a summary says for or against a claim comes out of the report, known sentence or not."""

from __future__ import annotations

import pytest

from privacy.report import conditions as needs
from privacy.report.catalogue import catalogue
from privacy.report.facts import Condition, ConditionStatus
from server.run_state import ClientTally, RunState
from server.summary import NO_PRIVACY, disclosed, withdrawn
from tests.server.conftest import PRIVATE, make_plan


def sentences() -> list[tuple[str, ConditionStatus]]:
    """Every sentence that the server writes today."""
    plan = make_plan(
        {"data": {"partition": {"kind": "iid", "clients": 2}, "person_column": "p", "max_rows_per_person": 2}},
        PRIVATE,
        {"privacy": {"noise": "reproducible", "selection": "uncharged"}, "federation": {"rounds": 10}},
        {"evaluation": {"baselines": True, "patience": 3}},
    )
    calm = plan.model_copy(update={"evaluation": plan.evaluation.model_copy(update={"patience": None})})
    state = RunState(round=4, clients={"north": ClientTally(withdrawn=[4]), "west": ClientTally(unprotected=[4])})
    lacking = [NO_PRIVACY, *withdrawn(plan, state, unpriced=["south"])]
    return [
        *((text, "not-met") for text in lacking),
        *((text, "outside") for text in {*disclosed(plan), *disclosed(calm)}),
    ]


@pytest.mark.parametrize(("text", "status"), sentences())
def test_every_sentence_of_the_summary_is_known(text: str, status: ConditionStatus) -> None:
    found = needs.recognise(text, status)
    assert found.code != "other", text
    assert found.status == status
    for language in ("en", "zh"):
        assert catalogue(language).has(f"condition.{found.code}.need")
        assert catalogue(language).has(f"condition.{found.code}.fail")


def test_a_sentence_that_nobody_knows_is_kept_word_for_word() -> None:
    found = needs.recognise("the moon was full", "not-met")
    assert (found.code, found.text, found.status) == ("other", "the moon was full", "not-met")


def test_columns_and_clients_are_read_from_their_sentences() -> None:
    names = needs.recognise("the names of the clients are values of the column clinic and are not protected", "outside")
    failed = needs.recognise("failed, which may tell something of their data (rule 5): clients a, b", "not-met")
    assert dict(names.values) == {"column": "clinic"}
    assert failed.clients == ("a", "b")


def test_of_two_words_on_one_condition_the_worse_counts() -> None:
    met, broken = Condition(code="x", status="met"), Condition(code="x", status="not-met", clients=("a",))
    other = Condition(code="x", status="not-met", clients=("b",))
    assert needs.merged([met, broken]) == needs.merged([broken, met]) == [broken]
    assert needs.merged([broken, met, other])[0].clients == ("a", "b")


def test_a_reason_for_everybody_outweighs_one_for_some() -> None:
    some, everybody = Condition(code="x", status="not-met", clients=("a",)), Condition(code="x", status="not-met")
    assert needs.merged([some, everybody]) == needs.merged([everybody, some]) == [everybody]
