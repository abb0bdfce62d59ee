"""The report's numbers, against closed forms and brute force."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy import accountant
from privacy.meaning import true_positives
from privacy.mechanisms import DpSgd, Gaussian, Release
from privacy.report import figures
from privacy.report.accounts import Point
from privacy.report.figures import UnknownReleaseError

NORMAL = NormalDist()
DELTA = 1e-5
STEP = DpSgd(noise_multiplier=2.0, sample_rate=0.05, steps=10)


@pytest.mark.parametrize(("noise", "releases"), [(1.0, 1), (5.0, 4), (20.0, 80)])
def test_the_attacker_against_gaussian_noise_gains_what_the_closed_form_says(noise: float, releases: int) -> None:
    # T releases with noise multiplier s are one with mean mu = sqrt(T)/s: TPR(a) = Phi(Phi^-1(a) + mu), and the total
    # variation is 2 Phi(mu/2) - 1 (Dong, Roth & Su 2022, corollary 2.13 and section 2.3).
    charged: Counter[Release] = Counter({Gaussian(noise_multiplier=noise): releases})
    mu = math.sqrt(releases) / noise
    found = figures.meaning(charged, failure=DELTA)
    assert found.advantage == pytest.approx(2 * NORMAL.cdf(mu / 2) - 1, abs=2e-3)
    for rate, bound in ((0.01, found.found_at_1_percent), (0.001, found.found_at_0_1_percent)):
        exact = NORMAL.cdf(NORMAL.inv_cdf(rate) + mu)
        assert exact <= bound <= exact * 1.15 + 1e-3
    for point in found.roc[1:-1]:
        assert point.true_positives >= NORMAL.cdf(NORMAL.inv_cdf(point.false_positives) + mu) - 1e-9


@given(epsilon=st.floats(0.01, 12), delta=st.floats(1e-8, 0.1))
def test_of_a_pair_alone_the_worst_mechanism_is_assumed(epsilon: float, delta: float) -> None:
    # The pair of distributions over four outcomes that (epsilon, delta) allows at worst (Kairouz, Oh & Viswanath
    # 2015): delta each certain, the rest randomised response. Its best attacker is found by trying all rejection sets.
    keep = (1 - delta) * math.exp(epsilon) / (1 + math.exp(epsilon))
    there = [delta, keep, 1 - delta - keep, 0.0]
    absent = there[::-1]
    sets = [[i for i in range(4) if mask >> i & 1] for mask in range(16)]
    advantage = max(sum(there[i] - absent[i] for i in chosen) for chosen in sets)
    found = figures.meaning_of_pair(epsilon, delta)
    assert found.source == "pair"
    assert found.advantage == pytest.approx(advantage, abs=1e-9)
    for chosen in sets:
        false, true = sum(absent[i] for i in chosen), sum(there[i] for i in chosen)
        assert true_positives([(epsilon, delta)], false) >= true - 1e-9


@given(first=st.integers(0, 50), length=st.integers(0, 500), most=st.integers(2, 30))
def test_spread_keeps_both_ends_and_the_limit(first: int, length: int, most: int) -> None:
    chosen = figures.spread(first, first + length, most)
    assert chosen == sorted(set(chosen))
    assert {chosen[0], chosen[-1]} == {first, first + length}
    assert len(chosen) <= max(most, 1) + 1
    if length < most:
        assert len(chosen) == length + 1


def test_a_path_is_what_the_accountant_says_of_each_prefix() -> None:
    history = [(number, Counter({STEP: 1})) for number in range(1, 41)]
    points = figures.path_points(history, DELTA)
    assert len(points) <= figures.MOST_POINTS
    assert {points[0].at, points[-1].at} == {1, 40}
    for point in points:
        assert point.value == accountant.epsilon({STEP: point.at}, DELTA).epsilon


def test_two_charges_of_one_round_are_one_point() -> None:
    points = figures.path_points([(1, Counter({STEP: 1})), (2, Counter({STEP: 1})), (2, Counter({STEP: 1}))], DELTA)
    assert [(point.at, point.value) for point in points] == [
        (1, accountant.epsilon({STEP: 1}, DELTA).epsilon),
        (2, accountant.epsilon({STEP: 3}, DELTA).epsilon),
    ]


@pytest.mark.parametrize("limit", [None, 1.2, 1.0, 0.4])
def test_a_forecast_ends_where_the_budget_does(limit: float | None) -> None:
    each: Counter[Release] = Counter({STEP: 1})
    last = Point(at=1, value=accountant.epsilon(each, DELTA).epsilon)
    points, covered = figures.forecast(each, each, DELTA, last=last, planned=30, limit=limit)
    fits = [n for n in range(1, 31) if limit is None or accountant.epsilon({STEP: n}, DELTA).epsilon <= limit]
    assert covered == (None if len(fits) == 30 else max(fits))
    assert points[-1].at == max(fits)
    for point in points:
        assert point.value == accountant.epsilon({STEP: point.at}, DELTA).epsilon


def test_nothing_is_forecast_after_the_last_round() -> None:
    each: Counter[Release] = Counter({STEP: 1})
    assert figures.forecast(each, each, DELTA, last=Point(at=5, value=1.0), planned=5, limit=None) == ((), None)


def test_the_curve_holds_the_claim_itself_and_falls() -> None:
    points = figures.curve({STEP: 12}, 3e-6)
    assert (
        next(point for point in points if point.delta == 3e-6).epsilon == accountant.epsilon({STEP: 12}, 3e-6).epsilon
    )
    assert all(a.epsilon >= b.epsilon for a, b in pairwise(points))


@pytest.mark.parametrize(
    "release", [{"mechanism": "magic"}, {}, {"mechanism": "dp-sgd"}, STEP.to_json() | {"steps": 0}]
)
def test_a_price_is_never_guessed(release: dict[str, object]) -> None:
    with pytest.raises(UnknownReleaseError):
        figures.counts_of(((release, 1),))
