"""Who may take part when, and the heaviest a client can weigh."""

from itertools import combinations, pairwise

import numpy as np
import pytest

from privacy.factorisation.participation import Participation


def patterns(participation: Participation) -> list[tuple[int, ...]]:
    """All sets of rounds in which one client may take part, by trying every one."""
    rounds = range(1, participation.rounds + 1)
    sets = (chosen for k in range(participation.most + 1) for chosen in combinations(rounds, k))
    return [chosen for chosen in sets if all(b - a >= participation.separation for a, b in pairwise(chosen))]


@pytest.mark.parametrize("separation", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("most", [1, 2, 3, 99])
def test_the_heaviest_pattern_is_that_of_brute_force(separation: int, most: int) -> None:
    random = np.random.default_rng([separation, most])
    for rounds in (1, 2, 7, 9):
        participation = Participation(rounds=rounds, separation=separation, most=most)
        weights = random.integers(0, 50, rounds).tolist()
        expected = max(sum(weights[t - 1] for t in chosen) for chosen in patterns(participation))
        assert participation.heaviest(weights) == expected


def test_exactly_the_patterns_are_admitted() -> None:
    participation = Participation(rounds=8, separation=3, most=2)
    allowed = set(patterns(participation))
    for k in range(4):
        for chosen in combinations(range(1, 9), k):
            admitted = all(participation.admits(chosen[:i], t) for i, t in enumerate(chosen))
            assert admitted == (chosen in allowed)


def test_there_is_no_room_for_more_than_rounds_allow() -> None:
    assert Participation(rounds=100, separation=30, most=50).most == 4
    assert Participation(rounds=100, separation=100, most=50).most == 1


def test_rounds_outside_a_run_or_out_of_order_are_an_error() -> None:
    participation = Participation(rounds=8, separation=3, most=2)
    for past, round in (((), 0), ((), 9), ((4,), 4), ((5,), 2)):
        with pytest.raises(ValueError, match=f"round {round} is not one of"):
            participation.admits(past, round)


@pytest.mark.parametrize(("rounds", "separation", "most", "cohort"), [(20, 4, 99, 3), (20, 4, 2, 3), (7, 30, 5, 2)])
def test_with_the_least_population_cohorts_in_turns_keep_to_it(
    rounds: int, separation: int, most: int, cohort: int
) -> None:
    participation = Participation(rounds=rounds, separation=separation, most=most)
    clients = participation.least_population(cohort)
    past: list[list[int]] = [[] for _ in range(clients)]
    for t in range(1, rounds + 1):
        for i in range(cohort):
            client = ((t - 1) * cohort + i) % clients
            assert participation.admits(past[client], t)
            past[client].append(t)
    # One client fewer, and even the best turns break a bound.
    assert (clients - 1) * participation.most < rounds * cohort or (clients - 1) < cohort * min(separation, rounds)


@pytest.mark.parametrize("field", ["rounds", "separation", "most"])
@pytest.mark.parametrize("bad", [0, -1, 1.5, True])
def test_what_is_out_of_range_is_refused(field: str, bad: object) -> None:
    with pytest.raises(ValueError, match=field):
        Participation(**{"rounds": 5, "separation": 2, "most": 2, field: bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="5 weights"):
        Participation(rounds=5, separation=2, most=2).heaviest([1, 1])
