"""Several runs side by side: only like epsilons are compared, and a withdrawn claim beats nobody."""

from __future__ import annotations

import pytest

from privacy.report import Facts, facts_of_run
from privacy.report.accounts import Status
from privacy.report.charts.frontier import Dot, frontier
from privacy.report.render import compare_html
from security.errors import UsageError
from tests.privacy.report import examples
from tests.privacy.report.examples import SITES, metrics, plan, row, summary
from tests.privacy.report.test_render import text_of


def made(rounds: int, accuracy: float, **privacy: object) -> Facts:
    rows = [row(site, rounds) for site in SITES]
    return facts_of_run(
        plan=plan(), summary=summary(rows, rounds=rounds, accuracy=accuracy, **privacy), metrics=metrics(rounds)
    )


def dot(number: int, epsilon: float, value: float, status: Status = "stands") -> Dot:
    return Dot(number=number, epsilon=epsilon, value=value, group=0, status=status)


def test_the_frontier_is_what_no_other_run_beats() -> None:
    dots = [dot(1, 1.0, 0.6), dot(2, 2.0, 0.5), dot(3, 2.0, 0.7), dot(4, 3.0, 0.7), dot(5, 4.0, 0.9)]
    beaten = {
        one.number
        for one in dots
        for other in dots
        if (other.epsilon, -other.value) != (one.epsilon, -one.value)
        and other.epsilon <= one.epsilon
        and other.value >= one.value
    }
    assert {one.number for one in frontier(dots, higher_is_better=True)} == {1, 2, 3, 4, 5} - beaten


def test_for_a_loss_lower_is_better() -> None:
    dots = [dot(1, 1.0, 0.6), dot(2, 2.0, 0.7), dot(3, 3.0, 0.2)]
    assert [one.number for one in frontier(dots, higher_is_better=False)] == [1, 3]


def test_a_withdrawn_claim_beats_nobody() -> None:
    dots = [dot(1, 2.0, 0.6), dot(2, 0.1, 0.99, "withdrawn")]
    assert [one.number for one in frontier(dots, higher_is_better=True)] == [1]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_runs_of_unlike_terms_have_a_line_of_their_own_and_a_warning(language: str) -> None:
    like = [("a", made(3, 0.5)), ("b", made(9, 0.7))]
    person = ("c", made(3, 0.4, unit="person, at most 3 records each"))
    warning = {"en": "their epsilons can't be compared", "zh": "它们的 ε 不可比较"}[language]
    assert warning not in text_of(compare_html(like, language=language))
    assert warning in text_of(compare_html([*like, person], language=language))


def test_every_epsilon_in_the_table_says_what_it_is_about() -> None:
    runs = [("stands", made(3, 0.5)), ("withdrawn", facts_of_run(**examples.withdrawn()))]
    page = compare_html([*runs, ("plain", facts_of_run(**examples.plain()))])
    text = text_of(page)
    assert text.count("one added or removed") == 2
    assert "<s>" in page
    assert "This protects nobody" in text
    assert "3 runs; 1 of them claim their epsilon." in text


def test_runs_that_were_never_evaluated_can_be_listed() -> None:
    bare = facts_of_run(plan=plan(), summary=summary([row("a", 1)], rounds=1) | {"final": None}, metrics=[])
    assert "No run has both an epsilon and a accuracy" in text_of(compare_html([("x", bare)]))


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(UsageError, match="no runs to compare"):
        compare_html([])
