"""By class: against scikit-learn's own report; calibration: against the sums of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, classification_report

from server.assessment.calibration import BINS, calibration
from server.assessment.classes import by_class
from server.assessment.facts import LEAST

RNG = np.random.default_rng(11)
NAMES = ("a", "b", "c", "d")


def test_figures_are_those_of_the_librarys_report() -> None:
    truth = RNG.integers(0, 4, 400)
    guess = np.where(RNG.random(400) < 0.7, truth, RNG.integers(0, 4, 400))
    found = by_class(truth, guess, NAMES)
    report = classification_report(truth, guess, target_names=NAMES, output_dict=True)
    for row in found.rows:
        assert row.precision is not None
        assert row.recall is not None
        expected = report[row.name]
        assert (row.precision.value, row.recall.value, row.f1, row.support) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"], expected["support"])
        )
    for mine, theirs in ((found.macro, "macro avg"), (found.weighted, "weighted avg")):
        expected = report[theirs]
        assert (mine.precision, mine.recall, mine.f1) == pytest.approx(
            (expected["precision"], expected["recall"], expected["f1-score"])
        )
    assert found.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, guess))
    assert found.confusion is not None
    table = np.array(found.confusion)
    assert table.sum() == 400
    assert np.trace(table) == (truth == guess).sum()
    assert [row.guessed for row in found.rows] == table.sum(axis=0).tolist()


def test_a_class_that_is_not_there_divides_nothing_by_zero() -> None:
    found = by_class(np.array([0, 0, 1]), np.array([0, 2, 1]), NAMES)
    there, alone, guessed, nowhere = found.rows
    assert (nowhere.precision, nowhere.recall, nowhere.f1) == (None, None, None)
    assert guessed.recall is None
    assert guessed.precision is not None
    assert guessed.precision.value == 0.0
    assert there.f1 == pytest.approx(2 / 3)
    assert alone.f1 == 1.0
    assert found.balanced_accuracy == 0.75  # of the classes that are there


def test_an_example_without_a_guess_is_in_no_column() -> None:
    found = by_class(np.array([0, 0, 1, 1]), np.array([-1, 0, 1, -1]), ("a", "b"))
    assert found.confusion == ((1, 0), (0, 1))
    assert [row.recall.value for row in found.rows if row.recall] == [0.5, 0.5]
    assert by_class(np.array([0]), np.array([-1]), ("a", "b")).confusion is None


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_calibration_is_the_sum_of_its_definition(classes: int) -> None:
    logits = RNG.normal(0, 2, (500, classes))
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = RNG.integers(0, classes, 500)
    found = calibration(chances, truth)
    assert found is not None
    error = 0.0
    for index in range(BINS):
        rows = [i for i in range(500) if index / BINS < chances[i].max() <= (index + 1) / BINS + 1e-15]
        one = found.bins[index]
        assert one.n == len(rows)
        if rows:
            sure = float(np.mean([chances[i].max() for i in rows]))
            right = float(np.mean([chances[i].argmax() == truth[i] for i in rows]))
            error += len(rows) / 500 * abs(sure - right)
            assert one.confidence == pytest.approx(sure)
        assert (one.accuracy is None) == (len(rows) < LEAST)
    assert found.error == pytest.approx(error)
    squares = [((chances[i] - np.eye(classes)[truth[i]]) ** 2).sum() for i in range(500)]
    assert found.brier == pytest.approx(np.mean(squares))


def test_a_perfectly_calibrated_model_has_little_error() -> None:
    """With 20,000 draws the error of a true model is noise alone: its mean is below 0.01, so 0.02 is a safe bound."""
    chances = RNG.dirichlet((1.0, 1.0, 1.0), 20_000)
    truth = (RNG.random((20_000, 1)) > chances.cumsum(1)).sum(1).clip(0, 2)
    found = calibration(chances, truth)
    assert found is not None
    assert found.error < 0.02
    sharper = calibration(chances**3 / (chances**3).sum(1, keepdims=True), truth)
    assert sharper is not None
    assert sharper.error > 0.1


def test_of_probabilities_that_are_none_nothing_is_said() -> None:
    assert calibration(np.array([[0.5, 0.5], [np.nan, 1.0]]), np.array([0, 1])) is None


def test_certainty_of_one_and_a_half_fall_into_bins() -> None:
    found = calibration(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 1]))
    assert found is not None
    assert sum(one.n for one in found.bins) == 2
    assert found.bins[-1].n == 1
