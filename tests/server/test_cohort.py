"""Who takes part in a round: drawn from the plan's seed and the round's number alone, or from nobody knows where."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from security.errors import RunError
from server.cohort import sample_cohort, scheduled_cohort
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


# --- secret cohorts -----------------------------------------------------------------------------------------------


def secret(cohort: dict[str, object], noise: str = "secret") -> Plan:
    privacy = {"unit": "client", "trust": "central", "noise_multiplier": 1.0, "noise": noise}
    partition = {"kind": "iid", "clients": 20}
    return make_plan({"data": {"partition": partition}, "privacy": privacy, "federation": {"cohort": cohort}})


SECRET = {
    "fixed": secret({"sampling": "fixed", "size": 5}),
    "poisson": secret({"sampling": "poisson", "rate": 0.25}),
}


@pytest.mark.parametrize("kind", sorted(SECRET))
def test_rule_3_a_secret_cohort_follows_from_no_seed(kind: str) -> None:
    """Thirty rounds drawn alike by chance: below (1/3000)^30."""
    first, second = ([sample_cohort(SECRET[kind], number, CLIENTS) for number in range(30)] for _ in range(2))
    assert first != second
    assert all(cohort == [client for client in CLIENTS if client in cohort] for cohort in first)


@pytest.mark.parametrize("kind", sorted(SECRET))
def test_every_client_has_the_chance_that_its_figures_say(kind: str) -> None:
    """False alarms: 1e-6, over all clients."""
    rounds = 4000
    counts = Counter(client for _ in range(rounds) for client in sample_cohort(SECRET[kind], 1, CLIENTS))
    low, high = interval(rounds, 0.25, len(CLIENTS))
    assert all(low <= counts[client] <= high for client in CLIENTS), counts


def test_secret_poisson_clients_are_drawn_independently() -> None:
    """Sizes of the cohorts are binomial: a chi-square test with false alarms 1e-6."""
    rounds, n = 4000, 6
    sizes = Counter(len(sample_cohort(SECRET["poisson"], 1, CLIENTS[:n])) for _ in range(rounds))
    cells = [binom.pmf(k, n, 0.25) * rounds for k in range(4)] + [binom.sf(3, n, 0.25) * rounds]
    seen = [sizes[k] for k in range(4)] + [sum(sizes[k] for k in range(4, n + 1))]
    assert sum((s - e) ** 2 / e for s, e in zip(seen, cells, strict=True)) < chi2.isf(FALSE_ALARM, len(cells) - 1)


def test_of_a_fixed_secret_cohort_places_without_a_client_stay_empty() -> None:
    """Each of those who are there keeps its chance of 1/4: a whole cohort of five of them would give more."""
    rounds = 4000
    counts = Counter(client for _ in range(rounds) for client in sample_cohort(SECRET["fixed"], 1, CLIENTS[:6]))
    low, high = interval(rounds, 0.25, 6)
    assert all(low <= counts[client] <= high for client in CLIENTS[:6]), counts


def test_more_clients_than_the_population_are_refused() -> None:
    with pytest.raises(RunError, match=r"21 clients joined, more than federation\.population = 20"):
        sample_cohort(SECRET["fixed"], 1, [*CLIENTS, "site-99"])


@pytest.mark.parametrize("cohort", [{"sampling": "fixed", "size": 5}, {"sampling": "poisson", "rate": 0.25}])
def test_where_nothing_is_claimed_a_secret_cohort_may_follow_from_the_seed(cohort: dict[str, object]) -> None:
    plan = secret(cohort, noise="reproducible")
    drawn = [sample_cohort(plan, number, CLIENTS) for number in range(1, 30)]
    assert drawn == [sample_cohort(plan, number, CLIENTS) for number in range(1, 30)]
    assert len({tuple(one) for one in drawn}) > 20


# --- correlated noise: cohorts that keep to a schema


def scheduled(clients: int = 20, *, size: int = 5, rounds: int = 12, separation: int = 4, seed: int = 7) -> Plan:
    return make_plan(
        {
            "seed": seed,
            "data": {"partition": {"kind": "iid", "clients": clients}},
            "privacy": {
                "unit": "client",
                "trust": "central",
                "noise_multiplier": 2.0,
                "correlated": {"band": separation},
            },
            "federation": {"rounds": rounds, "cohort": {"sampling": "fixed", "size": size}},
        }
    )


@given(
    size=st.integers(1, 5),
    rounds=st.integers(1, 15),
    separation=st.integers(1, 6),
    more=st.integers(0, 7),
    away=st.randoms(use_true_random=False),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_whoever_is_away_nobody_comes_too_soon_or_too_often(
    size: int, rounds: int, separation: int, more: int, away: Random, seed: int
) -> None:
    """The schema holds for every client whatever happens; and with everybody there, every cohort is whole."""
    separation = min(separation, rounds)
    population = size * separation + more
    plan = scheduled(population, size=size, rounds=rounds, separation=separation, seed=seed)
    clients = [f"site-{number:03d}" for number in range(population)]
    for everybody in (True, False):
        asked: dict[str, list[int]] = {}
        for number in range(1, rounds + 1):
            there = clients if everybody else [client for client in clients if away.random() < 0.7]
            cohort = scheduled_cohort(plan, number, there, asked)
            assert set(cohort) <= set(there)
            assert len(cohort) <= size
            assert not everybody or len(cohort) == size
            for client in cohort:
                asked.setdefault(client, []).append(number)
        for own in asked.values():
            assert len(own) <= -(-rounds // separation)
            assert all(later - earlier >= separation for earlier, later in pairwise(own))


def test_a_round_that_was_begun_is_asked_of_the_same_and_of_nobody_else() -> None:
    plan = scheduled()
    first = scheduled_cohort(plan, 1, CLIENTS, {})
    asked = {client: [1] for client in first}
    assert scheduled_cohort(plan, 1, CLIENTS, asked) == first
    there = [client for client in CLIENTS if client != first[0]]
    assert scheduled_cohort(plan, 1, there, asked) == first[1:]
    assert scheduled_cohort(plan, 1, [client for client in CLIENTS if client not in first], asked) == []


def test_scheduled_cohorts_follow_from_the_seed_and_are_all_sorts() -> None:
    drawn = {tuple(scheduled_cohort(scheduled(seed=seed), 1, CLIENTS, {})) for seed in range(20)}
    assert len(drawn) > 15
    assert scheduled_cohort(scheduled(), 3, CLIENTS, {}) == scheduled_cohort(scheduled(), 3, CLIENTS, {})
