"""Guesses: the extremes are guessed, as many as was fixed before."""

from __future__ import annotations

import numpy as np
import pytest

from privacy.audit import one_run
from privacy.audit.guesses import accuracy, fixed_number, guess, mu_of
from privacy.audit.trade_off import GaussianPrivacy


def test_the_highest_are_said_to_be_planted_and_the_lowest_not() -> None:
    scores, planted = np.array([0.1, 5.0, -3.0, 0.2, 4.0]), np.array([True, True, False, False, False])
    assert guess(scores, planted, guesses=2).correct == 2
    assert guess(scores, planted, guesses=3).correct == 2  # 4.0 wasn't planted
    assert guess(scores, planted, guesses=4).correct == 2  # 0.1 was
    assert guess(scores, planted, guesses=5).correct == 3  # of all, those above 2.05 are said to be
    assert guess(scores, planted, guesses=0).correct == 0


def test_where_nothing_is_hidden_all_are_guessed_rightly_however_the_coins_fell() -> None:
    scores = np.array([1.0, 0.0, 1.1, 0.9, 1.0, 0.1, 1.0, -0.1])
    assert guess(scores, scores > 0.5, guesses=8).correct == 8
    assert guess(np.zeros(8), scores > 0.5, guesses=8).correct == 3, "scores that say nothing: one answer for all"


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_expected_accuracy_is_that_of_many_guesses(mu: float, share: float) -> None:
    """200,000 canaries: off by more than 5 deviations with probability below 1e-6."""
    rng, m = np.random.default_rng(2), 200_000
    planted = rng.random(m) < 0.5
    found = guess(mu * planted + rng.standard_normal(m), planted, guesses=int(m * share))
    assert found.correct / found.guesses == pytest.approx(accuracy(mu, share), abs=5 * 0.5 / found.guesses**0.5)


def test_the_number_of_guesses_follows_from_the_claim_and_is_a_good_one() -> None:
    def bound(guesses: int, correct: int) -> float:
        return one_run.lower_bound(canaries=2000, guesses=guesses, correct=correct, delta=1e-5, alpha=0.05)

    found = fixed_number(2000, bound, epsilon=8.0, delta=1e-5)
    mu = mu_of(8.0, 1e-5)
    assert 10 < found < 2000
    assert bound(found, int(found * accuracy(mu, found / 2000))) > bound(2000, int(2000 * accuracy(mu, 1.0))) + 0.3
    assert fixed_number(7, bound, epsilon=8.0, delta=1e-5) == 7


def test_mu_of_an_epsilon() -> None:
    assert GaussianPrivacy(mu_of(3.0, 1e-5)).epsilon(1e-5) == pytest.approx(3.0)
    assert mu_of(1e9, 1e-5) == 40


@pytest.mark.parametrize(
    ("scores", "planted", "guesses", "problem"),
    [
        ([0.0, 1.0], [True], 1, "scores for"),
        ([0.0, np.nan], [True, False], 1, "not finite"),
        ([0.0, 1.0], [True, False], 3, "3 guesses for 2"),
    ],
)
def test_what_is_no_guess_is_refused(scores: list[float], planted: list[bool], guesses: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        guess(np.array(scores), np.array(planted), guesses=guesses)
