"""The polynomial that most points lie on is found up to the code's radius, and nothing is made up beyond it."""

from __future__ import annotations

import random

import pytest

from security.secure_sum.decoding import decode
from security.secure_sum.field import PRIME, evaluate


def points(polynomial: list[int], count: int, wrong: int, rng: random.Random) -> tuple[dict[int, int], set[int]]:
    at = rng.sample(range(1, 300), count)
    bad = set(rng.sample(at, wrong))
    values = {x: evaluate(polynomial, x) for x in at}
    for x in bad:
        values[x] = (values[x] + rng.randrange(1, PRIME)) % PRIME
    return values, bad


@pytest.mark.parametrize(("count", "terms"), [(1, 1), (3, 1), (5, 5), (6, 3), (9, 4), (20, 11), (40, 25)])
def test_every_number_of_wrong_points_up_to_the_radius_is_corrected(count: int, terms: int) -> None:
    rng = random.Random(count)
    for wrong in range((count - terms) // 2 + 1):
        for _ in range(5):
            polynomial = [rng.randrange(PRIME) for _ in range(terms - 1)] + [rng.randrange(1, PRIME)]
            values, _ = points(polynomial, count, wrong, rng)
            assert decode(values, terms=terms) == polynomial


def test_polynomials_of_lower_degree_and_zero_are_found_too() -> None:
    rng = random.Random(1)
    for polynomial in ([], [7], [0, 0, 5]):
        values, _ = points(polynomial, 12, 4, rng)
        assert decode(values, terms=4) == polynomial


def test_points_beyond_the_radius_give_nothing() -> None:
    # Random errors leave another polynomial within the radius with a probability below 2^-200.
    rng = random.Random(2)
    for _ in range(20):
        values, _ = points([rng.randrange(PRIME) for _ in range(6)], 15, 6, rng)
        assert decode(values, terms=6) is None


def test_only_one_polynomial_can_be_within_the_radius() -> None:
    # 4 of 7 points on one line, 3 on another that crosses it: ⌊(7 − 2)/2⌋ = 2 wrong ones are the most, so neither.
    line, other = [1, 1], [2, 2]
    values = {x: evaluate(line if x <= 4 else other, x) for x in range(1, 8)}
    assert decode(values, terms=2) is None
    values[5] = evaluate(line, 5)
    assert decode(values, terms=2) == line
