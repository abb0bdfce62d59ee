"""From scores and coins to findings: false alarms are divided, the best of three numbers of guesses is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from privacy.audit import coin_bounds
from privacy.audit.coin_bounds import WAYS, Claim, Seen, estimates, findings, power
from privacy.audit.guesses import fixed_number, mu_of
from privacy.audit.trade_off import GaussianPrivacy, of_gaussian

DELTA = 1e-5


def claim(epsilon: float) -> Claim:
    return Claim(trust="local", epsilon=epsilon, delta=DELTA, curve=of_gaussian(mu_of(epsilon, DELTA)))


def seen(mu: float, m: int = 2000, seed: int = 1) -> Seen:
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    return Seen(looked_for="gradients", way="coordinate", scores=mu * coins + rng.standard_normal(m), coins=coins)


def test_a_sound_claim_is_not_broken_and_the_curve_tells_more() -> None:
    plain, curved = findings(seen(mu_of(4.0, DELTA)), claim(4.0), alpha=1e-3)
    assert (plain.method, curved.method) == ("epsilon-delta", "trade-off")
    assert 0 <= plain.epsilon < curved.epsilon < 4.0
    assert "broken" not in (plain.verdict, curved.verdict)
    assert plain.alpha == curved.alpha == pytest.approx(1e-3 / WAYS)
    assert (curved.trials, curved.claimed, curved.delta) == (2000, 4.0, DELTA)
    assert 0 < curved.correct <= curved.guesses <= 2000


def test_a_claim_of_too_little_is_broken() -> None:
    """Noise of a tenth: mu is ten times as large."""
    found = findings(seen(10 * mu_of(4.0, DELTA)), claim(4.0), alpha=1e-3)
    assert found[1].verdict == "broken"
    assert found[1].contradicted


def test_where_nearly_nothing_is_hidden_all_coins_are_guessed() -> None:
    (_, curved) = findings(seen(20.0), claim(4.0), alpha=1e-3)
    assert curved.guesses == 2000
    assert curved.correct == 2000
    assert curved.power == curved.epsilon > 4.0


@pytest.mark.parametrize("seed", range(3))
def test_what_hides_nothing_is_broken_with_as_few_canaries_as_have_the_power(seed: int) -> None:
    """Power is of right guesses alone: an adversary must be able to make them, however the coins fell."""
    m = next(n for n in range(20, 2000, 10) if power(n, claim(4.0), alpha=1e-3 / WAYS) >= 4.0)
    (_, curved) = findings(seen(40.0, m=m, seed=seed), claim(4.0), alpha=1e-3)
    assert curved.verdict == "broken"


def test_all_of_it_together_calls_a_true_claim_broken_no_more_often_than_agreed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The whole way from scores to verdicts, at alpha .2, on a Gaussian mechanism that is all that is claimed: of 30 at
    most 6 may be broken in the mean; more than 15 would be with probability below 1e-4."""
    numbers: dict[str, int] = {}  # they follow from the claim alone, and are most of the work

    def number_of(m: int, bound: Any, **claimed: float) -> int:
        if bound.__name__ not in numbers:
            numbers[bound.__name__] = fixed_number(m, bound, **claimed)
        return numbers[bound.__name__]

    monkeypatch.setattr(coin_bounds, "fixed_number", number_of)
    true, mu = claim(2.0), mu_of(2.0, DELTA)
    broken = sum(
        any(one.verdict == "broken" for one in findings(seen(mu, m=60, seed=seed), true, alpha=0.2))
        for seed in range(30)
    )
    assert broken <= 15


def test_few_canaries_say_nothing_of_a_large_epsilon() -> None:
    found = findings(seen(20.0, m=12), claim(8.0), alpha=1e-3)
    assert [one.verdict for one in found] == ["uninformative", "uninformative"]


def test_an_estimate_holds_planted_canaries_against_those_left_out_and_breaks_nothing() -> None:
    """A Gaussian mechanism of mu 1, 400 planted and 400 not: the estimate is within a third, whatever the scale."""
    one = seen(1.0, m=800)
    for scale in (0.01, 0.0001):  # of random directions in 10,000 dimensions; of coordinates that hardly move
        (found,) = estimates(Seen(**{**vars(one), "cosines": one.scores * scale}), claim(1.0))
        assert found.epsilon == pytest.approx(GaussianPrivacy(1.0).epsilon(DELTA), rel=1 / 3)
        assert found.verdict == "consistent", "it is above the claim, and proves nothing"
    assert estimates(one, claim(1.0)) == []
    few = seen(1.0, m=12)
    assert estimates(Seen(**{**vars(few), "cosines": few.scores}), claim(1.0)) == []
    still = Seen(**{**vars(one), "cosines": np.zeros(800)})
    assert estimates(still, claim(1.0)) == [], "where nothing moves there is no deviation"
