"""Rates and gaps of groups: against counting by hand, and what is too little to say anything of."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from server.assessment.facts import LEAST, Share
from server.assessment.groups import groups_of, ranges

RNG = np.random.default_rng(5)


def drawn(n: int, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    truth = RNG.integers(0, 2, n)
    guess = np.where(RNG.random(n) < 0.8, truth, 1 - truth)
    return truth, guess, RNG.choice(np.array(names), n)


def test_rates_are_those_of_each_groups_confusion_matrix() -> None:
    truth, guess, of = drawn(900, ("a", "b", "c"))
    found = groups_of(truth, guess, of, column="what", positive=(1, "yes"))
    assert [row.name for row in found.rows] == ["a", "b", "c"]
    for row in found.rows:
        own = of == row.name
        ((tn, fp), (fn, tp)) = confusion_matrix(truth[own], guess[own])
        shares = (row.accuracy, row.positive_rate, row.true_positive_rate, row.false_positive_rate)
        expected = ((tn + tp) / own.sum(), (fp + tp) / own.sum(), tp / (tp + fn), fp / (fp + tn))
        assert [share.value for share in shares if share] == pytest.approx(expected)
        assert row.n == own.sum()
    by_measure = {gap.measure: gap for gap in found.gaps}
    assert set(by_measure) == {
        "accuracy", "positive_rate", "true_positive_rate", "false_positive_rate", "equalised_odds"
    }  # fmt: skip
    for measure in ("accuracy", "positive_rate", "true_positive_rate", "false_positive_rate"):
        values = {row.name: getattr(row, measure).value for row in found.rows}
        gap = by_measure[measure]  # type: ignore[index]
        assert gap.value == pytest.approx(max(values.values()) - min(values.values()))
        assert (values[gap.highest], values[gap.lowest]) == (max(values.values()), min(values.values()))
        assert gap.low <= gap.value <= gap.high
    odds = by_measure["equalised_odds"]
    both = [by_measure[m] for m in ("true_positive_rate", "false_positive_rate")]  # type: ignore[index]
    assert odds.value == max(gap.value for gap in both)
    assert odds.high >= max(gap.high for gap in both)  # it allows for both having been looked at


def test_too_few_examples_have_no_rate_and_no_gap() -> None:
    of = np.array(["many"] * 200 + ["few"] * (LEAST - 1))
    truth, guess = np.tile([0, 1], 200)[: len(of)], np.ones(len(of), dtype=np.int64)
    found = groups_of(truth, guess, of, column="what", positive=(1, "yes"))
    few, many = found.rows
    assert (few.n, few.accuracy, few.positive_rate, few.true_positive_rate) == (LEAST - 1, None, None, None)
    assert isinstance(many.accuracy, Share)
    assert found.gaps == ()


def test_a_group_without_a_positive_has_no_true_positive_rate() -> None:
    of = np.array(["a", "b"] * 50)
    truth = np.where(of == "a", 0, np.arange(100) // 2 % 2)
    found = groups_of(truth, truth, of, column="what", positive=(1, "yes"))
    assert found.rows[0].true_positive_rate is None
    assert found.rows[0].false_positive_rate is not None
    assert [gap.measure for gap in found.gaps] == ["accuracy", "positive_rate", "false_positive_rate"]


def test_examples_of_nobody_are_counted_and_left_out() -> None:
    truth = np.zeros(100, dtype=np.int64)
    found = groups_of(truth, truth, np.array(["", "a"] * 50), column="client", positive=None)
    assert found.others == 50
    assert [(row.name, row.n) for row in found.rows] == [("a", 50)]
    assert found.rows[0].positive_rate is None


def test_an_example_without_a_guess_is_wrong_and_not_positive() -> None:
    truth = np.ones(40, dtype=np.int64)
    guess = np.where(np.arange(40) < 10, -1, 1)
    row = groups_of(truth, guess, np.array(["a"] * 40), column="what", positive=(1, "yes")).rows[0]
    assert row.accuracy is not None
    assert row.positive_rate is not None
    assert row.accuracy.value == row.positive_rate.value == 0.75


def test_many_numbers_become_four_ranges_of_about_as_many() -> None:
    values = np.array([str(value) for value in RNG.permutation(np.repeat(np.arange(17, 91), 5))] + ["?", ""])
    found = ranges(values, ("?",))
    assert found is not None
    names, times = np.unique(found, return_counts=True)
    assert [name.partition(":")[0] for name in names] == ["1", "2", "3", "4", "missing"]
    assert times[-1] == 2
    assert times[:-1].max() - times[:-1].min() <= 10
    numbers = values[:-2].astype(int)
    for name in names[:-1]:
        own = numbers[found[:-2] == name]
        low, _, high = name.partition(": ")[2].partition(" to ")
        assert own.min() == int(low)
        assert own.max() < int(high.split()[-1]) if "below" in high else own.max() == int(high)


@pytest.mark.parametrize("values", [["a", "b"], ["1", "2", "3"] * 9, ["1", "nan", *map(str, range(20))]])
def test_words_few_numbers_and_no_numbers_stay_as_they_are(values: list[str]) -> None:
    assert ranges(np.array(values), ("?",)) is None
