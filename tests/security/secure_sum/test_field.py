"""GF(p) is a field of the prime just above 2^256; uniform elements are uniform exactly; bytes have one reading."""

from __future__ import annotations

import os
import random

import pytest

from security.secure_sum.field import (
    ELEMENT_BYTES,
    PRIME,
    evaluate,
    from_bytes,
    inverse,
    inverses,
    to_bytes,
    uniform,
)

SEEDED = random.Random(20170281)


def is_prime(number: int) -> bool:
    """Miller–Rabin with the first forty primes and forty random bases: a composite passes with at most 4^-40."""
    small = [p for p in range(2, 174) if all(p % q for q in range(2, p))]
    if any(number % p == 0 for p in small):
        return number in small
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in small + [SEEDED.randrange(2, number - 1) for _ in range(40)]:
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def test_p_is_the_least_prime_above_two_to_the_256() -> None:
    assert PRIME == 2**256 + 297
    assert is_prime(PRIME)
    assert not any(is_prime(number) for number in range(2**256, PRIME))


def test_every_element_but_zero_has_an_inverse() -> None:
    for element in (1, 2, PRIME - 1, 2**256, *(SEEDED.randrange(1, PRIME) for _ in range(50))):
        assert element * inverse(element) % PRIME == 1
    with pytest.raises(ValueError, match="not invertible"):
        inverse(0)


def test_many_inverses_are_those_of_each() -> None:
    elements = [1, 2, 3, PRIME - 1, *(SEEDED.randrange(1, PRIME) for _ in range(30))]
    assert inverses(elements) == [pow(element, PRIME - 2, PRIME) for element in elements]
    assert inverses([]) == []
    with pytest.raises(ValueError, match="not invertible"):
        inverses([5, 0, 7])


def test_a_polynomial_is_evaluated_term_by_term() -> None:
    polynomial = [SEEDED.randrange(PRIME) for _ in range(70)]
    for at in (0, 1, 2, 200, 2**31):
        expected = sum(c * pow(at, power, PRIME) for power, c in enumerate(polynomial)) % PRIME
        assert evaluate(polynomial, at) == expected
    assert evaluate([], 3) == 0


def test_bytes_of_an_element_are_33_and_back_again() -> None:
    for element in (0, 1, 2**256 - 1, 2**256, PRIME - 1):
        assert len(to_bytes(element)) == ELEMENT_BYTES == 33
        assert from_bytes(to_bytes(element)) == element
    assert to_bytes(258)[-2:] == b"\x01\x02"


@pytest.mark.parametrize(
    "data",
    [b"", bytes(32), bytes(34), PRIME.to_bytes(33, "big"), b"\xff" * 33],
    ids=["none", "short", "long", "p-itself", "largest"],
)
def test_what_is_no_element_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="element"):
        from_bytes(data)


def test_uniform_elements_reject_what_would_make_some_likelier() -> None:
    # 255·p is the largest multiple of p that fits: from there on, a remainder would come up once more than others.
    edge = 255 * PRIME
    assert edge < 2**264 < 256 * PRIME
    drawn = [edge, 2**264 - 1, edge - 1, 5, PRIME, edge + 7, 9]
    stream = iter(value.to_bytes(33, "big") for value in drawn)
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return b"".join(next(stream) for _ in range(count // 33))

    assert uniform(4, entropy) == [PRIME - 1, 5, 0, 9]
    assert asked == [4 * 33, 2 * 33, 33]
    assert uniform(0, entropy) == []


def test_entropy_that_gives_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="entropy"):
        uniform(2, lambda count: os.urandom(count - 1))


def test_uniform_elements_fill_the_field_evenly() -> None:
    # Sixteen classes by size; chi-square with 15 degrees of freedom exceeds 56.5 with probability 1e-6.
    found = uniform(16_000, os.urandom)
    counts = [0] * 16
    for element in found:
        counts[element * 16 // PRIME] += 1
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 56.5
