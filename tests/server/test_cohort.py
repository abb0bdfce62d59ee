"""Who takes part in a round: drawn from the plan's seed and the round's number alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from server.cohort import sample_cohort
from shared_models.plan import Plan
from tests.server.conftest import make_plan

CLIENTS = [f"site-{i:02d}" for i in range(20)]
FALSE_ALARM = 1e-6  # a fixed seed: each statistical test passes or fails for good


def plan_with(cohort: dict[str, object], seed: int = 7) -> Plan:
    return make_plan(
        {"seed": seed, "data": {"partition": {"kind": "iid", "clients": 20}}, "federation": {"cohort": cohort}}
    )


ALL = plan_with({"sampling": "all"})
FIXED = plan_with({"sampling": "fixed", "size": 5})
POISSON = plan_with({"sampling": "poisson", "rate": 0.25})


def test_all_means_all_in_order() -> None:
    assert all(sample_cohort(ALL, number, CLIENTS) == CLIENTS for number in range(1, 5))


@pytest.mark.parametrize("clients", [0, 1, 3, 5, 20])
def test_a_fixed_cohort_has_its_size_or_all_there_are(clients: int) -> None:
    for number in range(1, 20):
        cohort = sample_cohort(FIXED, number, CLIENTS[:clients])
        assert len(set(cohort)) == len(cohort) == min(5, clients)


def test_poisson_sampling_without_clients_is_an_empty_cohort() -> None:
    assert sample_cohort(POISSON, 1, []) == []


def test_a_poisson_cohort_may_be_empty_or_everybody() -> None:
    sizes = Counter(len(sample_cohort(POISSON, number, CLIENTS[:3])) for number in range(1, 500))
    assert set(sizes) == {0, 1, 2, 3}
    assert sample_cohort(plan_with({"sampling": "poisson", "rate": 1.0}), 1, CLIENTS) == CLIENTS


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 10_000), st.sampled_from(["fixed", "poisson"]))
def test_the_cohort_follows_from_seed_and_round_and_is_in_the_order_of_clients(
    seed: int, number: int, kind: str
) -> None:
    plan = plan_with({"sampling": kind}, seed=seed)
    cohort = sample_cohort(plan, number, CLIENTS)
    assert cohort == sample_cohort(plan, number, CLIENTS)
    assert cohort == [client for client in CLIENTS if client in cohort]


def test_drawing_leaves_everybody_elses_random_numbers_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    sample_cohort(POISSON, 1, CLIENTS)
    assert np.random.random() == expected


@pytest.mark.parametrize("plan", [FIXED, POISSON], ids=["fixed", "poisson"])
def test_another_seed_and_another_round_are_another_cohort(plan: Plan) -> None:
    here = [tuple(sample_cohort(plan, number, CLIENTS)) for number in range(1, 30)]
    other = plan.model_copy(update={"seed": 8})
    there = [tuple(sample_cohort(other, number, CLIENTS)) for number in range(1, 30)]
    assert len(set(here)) > 20
    assert sum(a == b for a, b in zip(here, there, strict=True)) < 3


def interval(n: int, p: float, tests: int) -> tuple[float, float]:
    """Bounds that n coin tosses leave by chance FALSE_ALARM over all tests together (Bonferroni)."""
    alarm = FALSE_ALARM / tests
    return float(binom.ppf(alarm / 2, n, p)), float(binom.isf(alarm / 2, n, p))


@pytest.mark.parametrize("plan", [FIXED, POISSON], ids=["fixed", "poisson"])
def test_every_client_takes_part_as_often_as_the_plan_says(plan: Plan) -> None:
    """Both cohorts have an inclusion probability of 1/4. False alarms: 1e-6."""
    rounds = 4000
    counts = Counter(client for number in range(1, rounds + 1) for client in sample_cohort(plan, number, CLIENTS))
    low, high = interval(rounds, 0.25, len(CLIENTS))
    assert all(low <= counts[client] <= high for client in CLIENTS), counts


def test_poisson_clients_are_drawn_independently() -> None:
    """Sizes of the cohorts are binomial: a chi-square test with false alarms 1e-6."""
    rounds, n, rate = 4000, 6, 0.25
    sizes = Counter(len(sample_cohort(POISSON, number, CLIENTS[:n])) for number in range(1, rounds + 1))
    cells = [binom.pmf(k, n, rate) * rounds for k in range(4)] + [binom.sf(3, n, rate) * rounds]
    seen = [sizes[k] for k in range(4)] + [sum(sizes[k] for k in range(4, n + 1))]
    statistic = sum((s - e) ** 2 / e for s, e in zip(seen, cells, strict=True))
    assert statistic < chi2.isf(FALSE_ALARM, len(cells) - 1)


@pytest.mark.parametrize(("plan", "both"), [(FIXED, 5 * 4 / (20 * 19)), (POISSON, 1 / 16)], ids=["fixed", "poisson"])
def test_rounds_and_pairs_are_independent(plan: Plan, both: float) -> None:
    """A client's part in a round says nothing of the next, nor a pair's. False alarms: 1e-6 a test."""
    rounds = 4000
    drawn = [set(sample_cohort(plan, number, CLIENTS)) for number in range(1, rounds + 2)]
    follows = sum(CLIENTS[0] in a and CLIENTS[0] in b for a, b in pairwise(drawn))
    # Pairs of successive rounds overlap, so the count's variance is up to three times a binomial's.
    spread = 4.9 * np.sqrt(3 * rounds * (1 / 16) * (15 / 16))
    assert abs(follows - rounds / 16) < spread
    low, high = interval(rounds, both, 1)
    assert low <= sum({CLIENTS[3], CLIENTS[4]} <= cohort for cohort in drawn[:rounds]) <= high
