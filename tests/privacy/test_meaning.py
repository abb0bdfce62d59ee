"""What an epsilon means, against attacks whose success is known in closed form."""

import math

import pytest
from scipy.stats import norm

from privacy.accountant import delta_for, epsilon
from privacy.meaning import (
    Meaning,
    advantage,
    certainty,
    meaning,
    meaning_of_pairs,
    pairs_of,
    true_positives,
)
from privacy.mechanisms import DpSgd, Gaussian, SkellamSum

SIGMAS = pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 5.0, 40.0])


def gaussian(sigma: float) -> list[Gaussian]:
    return [Gaussian(noise_multiplier=sigma)]


@SIGMAS
def test_the_largest_advantage_is_the_total_variation_distance(sigma: float) -> None:
    exact = 2 * norm.cdf(1 / (2 * sigma)) - 1
    assert exact <= meaning(gaussian(sigma), failure=1e-5).advantage <= exact + 1e-8


@SIGMAS
@pytest.mark.parametrize("rate", [1e-4, 0.001, 0.01, 0.3, 0.9])
def test_true_positives_are_those_of_the_best_test(sigma: float, rate: float) -> None:
    """Neyman and Pearson: the best test compares with a threshold, TPR = Phi(Phi^-1(FPR) + 1 / sigma)."""
    exact = norm.cdf(norm.ppf(rate) + 1 / sigma)
    found = true_positives(pairs_of(gaussian(sigma), failure=1e-5), rate)
    assert exact <= found <= exact * 1.001


@SIGMAS
@pytest.mark.parametrize("failure", [1e-3, 1e-5, 1e-8])
def test_certainty_is_exceeded_no_more_often_than_said(sigma: float, failure: float) -> None:
    """The loss of the Gaussian mechanism is N(mu^2 / 2, mu^2) if the unit is there, N(-mu^2 / 2, mu^2) if not."""
    mu = 1 / sigma
    sure = meaning(gaussian(sigma), failure=failure).certainty
    loss = math.log(sure / (1 - sure))
    present, absent = norm.sf((loss - mu**2 / 2) / mu), norm.sf((loss + mu**2 / 2) / mu)
    assert absent <= present <= failure
    # And it is not much too careful: a tenth of a standard deviation per decade of failure at most.
    assert loss <= mu**2 / 2 + mu * norm.isf(failure) * 1.15


def test_sampling_makes_it_harder() -> None:
    whole = meaning([DpSgd(noise_multiplier=1.0, sample_rate=1.0, steps=10)], failure=1e-5)
    sampled = meaning([DpSgd(noise_multiplier=1.0, sample_rate=0.1, steps=10)], failure=1e-5)
    assert sampled.advantage < whole.advantage
    assert sampled.found_at_1_percent < whole.found_at_1_percent
    assert sampled.found_at_0_1_percent < whole.found_at_0_1_percent
    assert sampled.certainty < whole.certainty


def test_the_sampled_attack_s_advantage_is_exact() -> None:
    """Drawn with probability q, a unit moves the outcome by 1 / sigma: total variation q (2 Phi(1 / (2 sigma)) - 1)."""
    exact = 0.2 * (2 * norm.cdf(0.5) - 1)
    found = meaning([DpSgd(noise_multiplier=1.0, sample_rate=0.2, steps=1)], failure=1e-5).advantage
    assert exact - 1e-12 <= found <= exact * 1.001


def test_nothing_released_tells_nothing() -> None:
    nothing = meaning([], failure=1e-5)
    assert nothing.advantage == 0
    assert nothing.found_at_1_percent == pytest.approx(0.01)
    assert nothing.certainty == pytest.approx(0.5)


def test_no_noise_to_speak_of_tells_everything() -> None:
    everything = meaning(gaussian(1e-6), failure=1e-5)
    assert everything.advantage == pytest.approx(1.0, abs=1e-15)
    assert everything.found_at_1_percent == everything.found_at_0_1_percent == everything.certainty == 1.0


def test_a_history_priced_by_rdp_has_a_meaning_too() -> None:
    sums = [SkellamSum(noise_share=100.0, honest=5, l2_sensitivity=100.0, dimension=100)]
    found = meaning(sums, failure=1e-5)
    near = meaning(gaussian(math.sqrt(5)), failure=1e-5)
    assert near.advantage < found.advantage < 2 * near.advantage
    assert near.certainty < found.certainty < 1


class TestOnePairAlone:
    """What (epsilon, delta) says without the curve behind it: looser, and exact for randomised response."""

    def test_randomised_response_meets_the_bounds(self) -> None:
        """Tell the truth with probability e^eps / (1 + e^eps)."""
        truth = math.e / (1 + math.e)
        found = meaning_of_pairs([(1.0, 0.0)], failure=1e-9)
        assert found.advantage == pytest.approx(2 * truth - 1)
        assert found.certainty == pytest.approx(truth)
        assert true_positives([(1.0, 0.0)], 1 - truth) == pytest.approx(truth)

    def test_it_is_no_tighter_than_the_curve(self) -> None:
        releases = [DpSgd(noise_multiplier=1.0, sample_rate=0.05, steps=100)]
        spent = epsilon(releases, 1e-6)
        pair = meaning_of_pairs([(spent.epsilon, 1e-6)], failure=1e-5)
        whole = meaning(releases, failure=1e-5)
        assert whole.advantage < pair.advantage
        assert whole.found_at_1_percent < pair.found_at_1_percent
        assert whole.certainty < pair.certainty

    def test_delta_adds_to_the_advantage(self) -> None:
        assert advantage([(0.0, 0.1)]) == pytest.approx(0.1)
        assert advantage([(1.0, 0.1)]) == pytest.approx((math.e - 1 + 0.2) / (math.e + 1))
        assert advantage([(800.0, 0.0)]) == 1.0
        assert true_positives([(800.0, 0.0)], 0.01) == 1.0

    def test_more_pairs_never_loosen(self) -> None:
        pairs = [(0.5, 0.05), (1.0, 0.01), (2.0, 1e-5)]
        for count in (1, 2):
            assert advantage(pairs) <= advantage(pairs[:count])
            assert true_positives(pairs, 0.05) <= true_positives(pairs[:count], 0.05)

    def test_the_claim_s_own_delta_is_not_enough_for_the_odds(self) -> None:
        """(epsilon, delta) bounds an average over outcomes: with failure = delta nothing follows from that pair."""
        assert certainty([(1.0, 1e-5)], failure=1e-5) == 1.0
        assert certainty([(1.0, 1e-5)], failure=1e-4) == pytest.approx(1 / (1 + math.exp(-1) * 0.9))

    def test_a_prior_of_one_s_own(self) -> None:
        assert certainty([(1.0, 0.0)], failure=1e-5, prior=0.1) == pytest.approx(1 / (1 + 9 * math.exp(-1)))


def test_pairs_are_points_of_the_curve() -> None:
    releases = gaussian(2.0)
    for eps, delta in pairs_of(releases, failure=1e-5)[::50]:
        assert delta == delta_for(releases, eps)


def test_said_in_plain_words() -> None:
    found = Meaning(
        advantage=0.38292, found_at_1_percent=0.0923, found_at_0_1_percent=0.018, certainty=0.999312, failure=1e-5
    )
    assert found.describe() == (
        "No attack tells who took part with a true-positive rate more than 38.3 % above its false-positive rate.",
        "One that wrongly accuses 1 % of those who did not take part finds at most 9.3 % of those who did; one that "
        "wrongly accuses 0.1 % finds at most 1.8 %.",
        "Someone who first gave 50:50 could be at most 99.932 % sure, but for a chance of 1e-05.",
    )


@pytest.mark.parametrize("bad", [0.0, 1.0, -1.0, math.nan])
def test_values_out_of_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="failure"):
        meaning([], failure=bad)
    with pytest.raises(ValueError, match="prior"):
        certainty([(1.0, 0.0)], failure=0.1, prior=bad)


@pytest.mark.parametrize("pair", [(-1.0, 0.1), (1.0, 1.1), (math.nan, 0.1), (1.0, math.nan)])
def test_what_is_no_pair_is_refused(pair: tuple[float, float]) -> None:
    for ask in (advantage, lambda pairs: true_positives(pairs, 0.1), lambda pairs: certainty(pairs, failure=0.1)):
        with pytest.raises(ValueError, match="not a pair"):
            ask([pair])


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan])
def test_a_rate_is_a_part_of_one(rate: float) -> None:
    with pytest.raises(ValueError, match="false-positive rate"):
        true_positives([(1.0, 0.0)], rate)
