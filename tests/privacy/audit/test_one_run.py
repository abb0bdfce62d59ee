"""Bounds from one run: never above the truth more often than they say, and of the power that the papers show."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.audit import one_run, one_run_curve
from privacy.audit.guesses import fixed_number, guess, mu_of
from privacy.audit.trade_off import of_gaussian, of_releases
from privacy.mechanisms import DpSgd, Gaussian

DELTA = 1e-5


def outcomes(rng: np.random.Generator, m: int, mu: float, guesses: int, runs: int) -> list[int]:
    """Right guesses about a Gaussian mechanism, each canary with a coordinate of its own."""
    planted = rng.random((runs, m)) < 0.5
    scores = mu * planted + rng.standard_normal((runs, m))
    return [guess(s, p, guesses=guesses).correct for s, p in zip(scores, planted, strict=True)]


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("m", [1, 2, 9])
def test_the_p_value_is_the_tail_of_randomised_response_which_is_the_worst_there_is(m: int, epsilon: float) -> None:
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    for v in range(m + 1):
        tail = sum(right ** sum(w) * (1 - right) ** (m - sum(w)) for w in product((0, 1), repeat=m) if sum(w) >= v)
        assert one_run.p_value(canaries=m, guesses=m, correct=v, epsilon=epsilon, delta=0) == pytest.approx(tail)


@pytest.mark.parametrize("delta", [1e-5, 1e-3, 0.1])
@pytest.mark.parametrize(("m", "guesses"), [(1, 1), (10, 10), (40, 12)])
def test_with_a_delta_it_covers_a_mechanism_that_gives_away_each_coin_with_that_probability(
    m: int, guesses: int, delta: float
) -> None:
    """Independent (epsilon, delta) randomised responses; their tail is known exactly."""
    epsilon = 1.0
    right = delta + (1 - delta) / (1 + math.exp(-epsilon))
    for v in range(guesses + 1):
        found = one_run.p_value(canaries=m, guesses=guesses, correct=v, epsilon=epsilon, delta=delta)
        assert found >= stats.binom(guesses, right).sf(v - 1) * (1 - 1e-9)


@pytest.mark.parametrize(("m", "guesses", "correct"), [(1, 1, 1), (20, 20, 13), (500, 100, 90), (3000, 41, 41)])
def test_the_term_of_delta_is_that_of_the_paper_by_a_loop(m: int, guesses: int, correct: int) -> None:
    """Appendix D's own arithmetic, written down again."""
    for epsilon, delta in product((0.0, 1.0, 4.0), (0.0, 1e-6, 1e-4)):
        rightly = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
        alpha = total = 0.0
        for i in range(1, correct + 1):
            total += rightly.pmf(correct - i)
            alpha = max(alpha, total / i)
        expected = min(1.0, rightly.sf(correct - 1) + alpha * delta * 2 * m)
        given = {"canaries": m, "guesses": guesses, "correct": correct}
        assert one_run.p_value(**given, epsilon=epsilon, delta=delta) == pytest.approx(expected, rel=1e-9)


def test_a_lower_bound_is_where_the_p_value_is_what_was_agreed_on() -> None:
    given: dict[str, Any] = {"canaries": 1000, "guesses": 100, "correct": 93, "delta": DELTA}
    found = one_run.lower_bound(**given, alpha=0.001)
    assert one_run.p_value(**given, epsilon=found) == pytest.approx(0.001, rel=1e-3)
    assert one_run.lower_bound(**given, alpha=0.05) > found > 0
    assert one_run.lower_bound(canaries=1000, guesses=100, correct=50, delta=DELTA, alpha=0.05) == 0


@pytest.mark.parametrize(("epsilon", "least", "curved"), [(4.38, 2.0, 2.75), (10.0, 3.8, 5.7)])
def test_power_against_a_gaussian_mechanism(epsilon: float, least: float, curved: float) -> None:
    """With 4,000 canaries the papers' ways show about half of the truth; the curve more. Medians of 15 runs."""
    mu, m = mu_of(epsilon, DELTA), 4000
    for module, expected in ((one_run, least), (one_run_curve, curved)):

        def bound(guesses: int, correct: int, of: ModuleType = module) -> float:
            return float(of.lower_bound(canaries=m, guesses=guesses, correct=correct, delta=DELTA, alpha=0.05))

        guesses = fixed_number(m, bound, epsilon=epsilon, delta=DELTA)
        found = [bound(guesses, v) for v in outcomes(np.random.default_rng(1), m, mu, guesses, 15)]
        assert expected < float(np.median(found)) < epsilon


@pytest.mark.parametrize(("mu", "m", "guesses"), [(0.5, 1000, 1000), (1.0, 300, 300), (1.0, 300, 20), (3.0, 200, 60)])
def test_a_true_claim_is_not_contradicted(mu: float, m: int, guesses: int) -> None:
    """At alpha .05 at most 50 of 1,000 true claims may be; a bound that were right in 90 % would fail with
    probability above 1 - 1e-6."""
    curve = of_gaussian(mu)
    seen = Counter(outcomes(np.random.default_rng(3), m, mu, guesses, 1000))
    given: dict[str, Any] = {"canaries": m, "guesses": guesses, "alpha": 0.05}
    wrongly = sum(n for v, n in seen.items() if one_run_curve.contradicts(curve, **given, correct=v))
    assert wrongly <= 50 + 5 * math.sqrt(50)


@pytest.mark.parametrize("m", [1, 2, 5])
@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_no_claim_of_randomised_response_is_contradicted_more_often_than_agreed(m: int, epsilon: float) -> None:
    """Brute force: the exact law of right guesses, against the curve of (epsilon, 0)."""
    curve = lambda y: max(y / math.exp(epsilon), 1 - math.exp(epsilon) * (1 - y), 0.0)  # noqa: E731
    law = stats.binom(m, 1 / (1 + math.exp(-epsilon)))
    for alpha in (0.001, 0.05, 0.3):
        given: dict[str, Any] = {"canaries": m, "guesses": m, "alpha": alpha}
        wrongly = sum(law.pmf(v) for v in range(m + 1) if one_run_curve.contradicts(curve, **given, correct=v))
        assert wrongly <= alpha


def test_a_mechanism_with_too_little_noise_is_contradicted() -> None:
    claim = of_releases([Gaussian(noise_multiplier=2.0)])
    (v,) = outcomes(np.random.default_rng(0), 1000, 5.0, 400, 1)
    given: dict[str, Any] = {"canaries": 1000, "guesses": 400, "alpha": 0.001}
    assert one_run_curve.contradicts(claim, **given, correct=v)
    assert not one_run_curve.contradicts(of_gaussian(5.0), **given, correct=v)


@pytest.mark.parametrize("sigma", [0.7, 2.0])
def test_the_curve_of_a_ledger_is_that_of_the_mechanism(sigma: float) -> None:
    """From below, and close to it: the least probability that it allows is never above the Gaussian's own."""
    curve, exact = of_releases([Gaussian(noise_multiplier=sigma)]), of_gaussian(1 / sigma)
    for probability in (1e-4, 0.01, 0.3, 0.5, 0.9, 0.999):
        assert exact(probability) * 0.97 - 1e-5 <= curve(probability) <= exact(probability) + 1e-9


def test_more_releases_allow_more() -> None:
    one = DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=10)
    many = of_releases({one: 20})
    assert all(many(p) < of_releases([one])(p) for p in (0.01, 0.5, 0.9))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"correct": 11}, "11 rightly"),
        ({"guesses": 101}, "101 were guessed"),
        ({"correct": -1}, "-1 rightly"),
        ({"alpha": 0.0}, "alpha must be"),
        ({"alpha": 1.0}, "alpha must be"),
    ],
)
def test_impossible_counts_are_refused(wrong: dict[str, float], problem: str) -> None:
    given: dict[str, Any] = {"canaries": 100, "guesses": 10, "correct": 5, "delta": DELTA, "alpha": 0.05, **wrong}
    for module in (one_run, one_run_curve):
        with pytest.raises(ValueError, match=problem):
            module.lower_bound(**given)
    with pytest.raises(ValueError, match="epsilon must be"):
        one_run.p_value(canaries=1, guesses=1, correct=1, epsilon=-1.0, delta=0)
