"""Arithmetic of GF(p), p = 2^256 + 297, the least prime above 2^256: every secret of 32 bytes is one element.

Elements are Python integers from 0 to p − 1, so nothing here runs in constant time: secrets are fresh in every attempt
and no stranger can have the same one worked on twice.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Final

PRIME: Final = 2**256 + 297
ELEMENT_BYTES: Final = 33  # the least that hold every element

_FAIR: Final = (1 << 8 * ELEMENT_BYTES) // PRIME * PRIME  # the largest multiple of p that 33 bytes can exceed

Entropy = Callable[[int], bytes]
"""Gives that many independent uniform bytes."""


def uniform(count: int, entropy: Entropy) -> list[int]:
    """Independent elements, exactly uniform: 33 random bytes are drawn again where their remainder would favour some.

    Raises:
        ValueError: the entropy gives another number of bytes than it was asked for.
    """
    found: list[int] = []
    while (missing := count - len(found)) > 0:
        drawn = entropy(ELEMENT_BYTES * missing)
        if len(drawn) != ELEMENT_BYTES * missing:
            raise ValueError("the entropy gave another number of bytes than it was asked for")
        values = (
            int.from_bytes(drawn[start : start + ELEMENT_BYTES], "big") for start in range(0, len(drawn), ELEMENT_BYTES)
        )
        found.extend(value % PRIME for value in values if value < _FAIR)
    return found


def inverse(element: int) -> int:
    """The element's inverse.

    Raises:
        ValueError: of zero.
    """
    return pow(element, -1, PRIME)


def inverses(elements: Sequence[int]) -> list[int]:
    """The inverses of all, for little more than one (Montgomery's trick).

    Raises:
        ValueError: one is zero.
    """
    if not elements:
        return []
    products = list(accumulate(elements, lambda product, element: product * element % PRIME, initial=1))
    rest = inverse(products[-1])
    found = [0] * len(elements)
    for place in range(len(elements) - 1, -1, -1):
        found[place] = rest * products[place] % PRIME
        rest = rest * elements[place] % PRIME
    return found


def evaluate(polynomial: Sequence[int], at: int) -> int:
    """The value of a polynomial (coefficients from the constant upwards) at a small number."""
    # Reduced once, at the end: with a small `at` the numbers grow slower than reducing them each time costs.
    value = 0
    for coefficient in reversed(polynomial):
        value = value * at + coefficient
    return value % PRIME


def to_bytes(element: int) -> bytes:
    """33 bytes, big-endian."""
    return element.to_bytes(ELEMENT_BYTES, "big")


def from_bytes(data: bytes) -> int:
    """The element that 33 bytes say.

    Raises:
        ValueError: another length, or not below p.
    """
    if len(data) != ELEMENT_BYTES:
        raise ValueError(f"an element of the field has {ELEMENT_BYTES} bytes")
    element = int.from_bytes(data, "big")
    if element >= PRIME:
        raise ValueError("not an element of the field")
    return element
