"""The one polynomial of low degree that most of the given points lie on, whichever of them are wrong.

Shares are a Reed–Solomon code (McEliece, Sarwate 1981), decoded by Gao's algorithm (Gao 2003, "A new algorithm for
decoding Reed–Solomon codes"): with n points and degree below t, up to ⌊(n − t)/2⌋ wrong ones are found.
"""

from collections.abc import Mapping, Sequence

from security.secure_sum.field import PRIME, inverse, inverses

Polynomial = list[int]
"""Coefficients from the constant upwards, the last of them not zero; [] is zero."""


def decode(points: Mapping[int, int], *, terms: int) -> Polynomial | None:
    """The polynomial with at most `terms` coefficients that all but ⌊(n − terms)/2⌋ of the n points lie on.

    Returns:
        None where there is no such polynomial: more points are wrong. At most one can exist.
    """
    at = list(points)
    vanishing = _vanishing(at)
    high, low = vanishing, _interpolate(points, vanishing)
    # Half of the extended Euclidean algorithm on the two: it stops at low ≡ multiplier · interpolation.
    before: Polynomial = []
    multiplier: Polynomial = [1]
    while 2 * (len(low) - 1) >= len(at) + terms:
        quotient, rest = _divided(high, low)
        high, low = low, rest
        before, multiplier = multiplier, _less_product(before, quotient, multiplier)
    found, rest = _divided(low, multiplier)
    return None if rest or len(found) > terms else found


def _vanishing(at: Sequence[int]) -> Polynomial:
    """Π (x − xᵢ)."""
    product = [1]
    for root in at:
        product = [(up - root * same) % PRIME for up, same in zip([0, *product], [*product, 0], strict=True)]
    return product


def _interpolate(points: Mapping[int, int], vanishing: Polynomial) -> Polynomial:
    """The polynomial through all points, by Lagrange's formula."""
    parts = [_without_root(vanishing, root) for root in points]
    slopes = inverses([_value(part, root) for part, root in zip(parts, points, strict=True)])
    weights = [value * slope % PRIME for value, slope in zip(points.values(), slopes, strict=True)]
    total = [0] * len(points)
    for weight, part in zip(weights, parts, strict=True):
        total = [have + weight * more for have, more in zip(total, part, strict=True)]
    return _trimmed([coefficient % PRIME for coefficient in total])


def _without_root(polynomial: Polynomial, root: int) -> Polynomial:
    """The polynomial divided by (x − root), which divides it."""
    quotient, carry = [], 0
    for coefficient in reversed(polynomial):
        carry = (carry * root + coefficient) % PRIME
        quotient.append(carry)
    return quotient[-2::-1]


def _value(polynomial: Polynomial, at: int) -> int:
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * at + coefficient) % PRIME
    return value


def _divided(dividend: Polynomial, divisor: Polynomial) -> tuple[Polynomial, Polynomial]:
    """Quotient and rest."""
    rest = list(dividend)
    shift = len(rest) - len(divisor)
    quotient = [0] * max(shift + 1, 0)
    leading = inverse(divisor[-1])
    for place in range(shift, -1, -1):
        factor = rest[place + len(divisor) - 1] * leading % PRIME
        quotient[place] = factor
        for offset, coefficient in enumerate(divisor):
            rest[place + offset] = (rest[place + offset] - factor * coefficient) % PRIME
    return _trimmed(quotient), _trimmed(rest)


def _less_product(first: Polynomial, second: Polynomial, third: Polynomial) -> Polynomial:
    """first − second · third."""
    total = first + [0] * (len(second) + len(third) - 1 - len(first))
    for place, factor in enumerate(second):
        for offset, coefficient in enumerate(third):
            total[place + offset] = (total[place + offset] - factor * coefficient) % PRIME
    return _trimmed(total)


def _trimmed(polynomial: Polynomial) -> Polynomial:
    while polynomial and polynomial[-1] == 0:
        polynomial.pop()
    return polynomial
