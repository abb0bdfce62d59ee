"""Likelihood ratios of memberships: strong where models remember, chance where they don't."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.audit.membership import confidence, likelihood_ratios, roc


def attacked(gap: float, *, records: int = 4000, models: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Scores and truth, where a model is surer by `gap` deviations of records that it has seen."""
    rng = np.random.default_rng(4)
    hardness = 3 * rng.standard_normal(records)  # records differ more than membership does
    planted = rng.random((models + 1, records)) < 0.5
    sure = hardness + gap * planted + rng.standard_normal(planted.shape)
    return likelihood_ratios(sure[1:], planted[1:], sure[0]), planted[0]


def test_it_finds_members_however_unlike_records_are() -> None:
    """Gaussian laws a deviation apart: the best area is Phi(1 / sqrt 2) = .760; 32 models cost a little."""
    found = roc(*attacked(1.0))
    assert 0.73 < found.area < 0.77
    assert found.detected_at(0.01) > 0.05


def test_where_nothing_is_remembered_it_is_chance() -> None:
    """Of 2,000 members and as many others: beyond .5 +- .03 with probability below 1e-3."""
    found = roc(*attacked(0.0))
    assert found.area == pytest.approx(0.5, abs=0.03)
    assert found.detected_at(0.1) == pytest.approx(0.1, abs=0.04)


def test_confidence_is_the_logit_of_a_labels_probability() -> None:
    p = np.array([0.1, 0.5, 0.999])
    assert confidence(-np.log(p)) == pytest.approx(np.log(p / (1 - p)))
    assert np.isfinite(confidence(np.array([0.0, 1e3]))).all()


def test_a_roc_goes_from_corner_to_corner() -> None:
    found = roc(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]))
    assert (found.false_alarms[0], found.detected[0]) == (0, 0)
    assert (found.false_alarms[-1], found.detected[-1]) == (1, 1)
    assert found.area == pytest.approx(0.75)
    assert found.detected_at(0.0) == 0.5


def test_records_without_both_kinds_of_model_are_refused() -> None:
    shadows, planted = np.zeros((3, 2)), np.array([[True, True], [True, False], [True, True]])
    with pytest.raises(ValueError, match="with it and without"):
        likelihood_ratios(shadows, planted, np.zeros(2))
    with pytest.raises(ValueError, match="shapes"):
        likelihood_ratios(shadows, planted, np.zeros(3))
    with pytest.raises(ValueError, match="both kinds"):
        roc(np.zeros(3), np.ones(3, bool))
