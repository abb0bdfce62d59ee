"""Gaussian noise on a grid: round(scale · G), G standard normal, without approximation.

A release of integers x is protected by x + round(scale · G) = round(x + scale · G), which is post-processing of the
Gaussian mechanism: what an accountant says of a Gaussian holds for it as it stands, and there are no floats whose
spacing tells of x (Mironov 2012).

Box and Muller 1958 make two normals of two uniforms. Here float64 computes them, and an error bound says whether the
nearest integer is certain, whatever the digits of the uniforms beyond the 53rd. Where it is not (once in twenty
million draws at a scale of 2^20), further digits are drawn and the pair is computed again in decimal arithmetic, until
it is (the way correctly rounded functions are computed: Ziv 1991). So the tails don't end where 53 bits would end them.

What this rests on: float64 logarithms are within 2^-48 of their size, sines and cosines within 2^-48 (sixteen units
in the last place; NumPy's and torch's are within one or two, which a test samples), and the uniform bits are random.
"""

from collections.abc import Callable
from decimal import Context, Decimal, getcontext, localcontext
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray


def rounded_normals(
    first: NDArray[np.float64], second: NDArray[np.float64], scale: float, more: Callable[[], int]
) -> NDArray[np.int64]:
    """Two integers for each pair of uniforms: round(scale r cos a) of all, then round(scale r sin a) of all.

    Here r = sqrt(-2 ln(1 - U)) and a = 2 pi V, where U and V are uniform reals of which `first` and `second` are the
    leading 53 binary digits.

    Args:
        first: multiples of 2^-53 in [0, 1).
        second: as many more.
        scale: standard deviation in grid steps, above 0 and at most `privacy.noise_limits.LARGEST_SCALE`.
        more: draws 64 further digits, as an integer.
    """
    # With w = 1 - first (exact), 1 - U lies in (w - 2^-53, w], so r is off by at most 2^-53 / ((w - 2^-53) r): by
    # ln(w / v) <= (w - v) / v. In units of r, 53 digits of the angle and its roundings cost at most 2^-48, the
    # logarithm 2^-49, the cosine 2^-48, root and products 2^-50. Twice the one and 2^-46 r cover it all, and what
    # rounding does to the bound itself.
    rest = 1.0 - first
    logarithm = np.log(rest)
    radius = np.sqrt(2.0 * np.abs(logarithm, out=logarithm))  # abs, not minus: -0 would turn the bound's sign
    rest -= 2.0**-53
    with np.errstate(divide="ignore"):  # r or w - 2^-53 is 0: nothing is certain
        error = 2.0**-52 / np.multiply(rest, radius, out=rest)
    error += 2.0**-46 * radius
    error *= scale
    radius *= scale
    angle = torch.from_numpy((2.0 * np.pi) * second)  # torch's sine and cosine take a third of NumPy's time

    values = np.empty((2, len(first)), dtype=np.int64)
    uncertain = []
    for row, function in zip(values, (torch.cos, torch.sin), strict=True):
        exact = function(angle).numpy()
        exact *= radius
        nearest = np.rint(exact)
        np.copyto(row, nearest, casting="unsafe")
        exact -= nearest
        np.abs(exact, out=exact)
        exact += error
        uncertain.append(np.flatnonzero(exact >= 0.5))
    # Both values of a pair depend on the same digits: they are made certain together.
    for pair in np.union1d(*uncertain).tolist():
        values[:, pair] = resolve(int(first[pair] * 2**53), int(second[pair] * 2**53), scale, more)
    return values.reshape(-1)


def resolve(first: int, second: int, scale: float, more: Callable[[], int]) -> tuple[int, int]:
    """The two integers of one pair, by as many further digits of its uniforms as it takes.

    Args:
        first: the leading 53 binary digits of U, as an integer.
        second: those of V.
        scale: as for `rounded_normals`.
        more: draws 64 further digits, as an integer.
    """
    digits = 53
    while True:
        digits += 64
        first, second = first << 64 | more(), second << 64 | more()
        # In this precision rounding stays far below 2^-digits, that of a logarithm near 0 included.
        with localcontext(Context(prec=digits // 2 + 20)) as context:
            one = Decimal(1 << digits)
            if first + 1 == 1 << digits:
                continue  # r has no upper bound yet
            near = (-2 * ((one - first) / one).ln()).sqrt()
            far = (-2 * ((one - first - 1) / one).ln()).sqrt()
            cosine, sine = _cosine_and_sine(2 * _pi(context.prec) * second / one)
            error = Decimal(scale) * (far - near + 8 * (1 + far) / one)  # 8 > 2 pi, of the angle, and all rounding
            bounds = [
                (near * part * Decimal(scale) - error, near * part * Decimal(scale) + error) for part in (cosine, sine)
            ]
            lowest, highest = ([round(end) for end in ends] for ends in zip(*bounds, strict=True))
        if lowest == highest:
            return lowest[0], lowest[1]


def _cosine_and_sine(angle: Decimal) -> tuple[Decimal, Decimal]:
    """By their series, for 0 <= angle <= 2 pi, in the precision of the context."""
    sums, term, k = [Decimal(0), Decimal(0)], Decimal(1), 0
    enough = Decimal(10) ** -getcontext().prec
    while k < 8 or term > enough:  # from k = 7 on the terms fall
        sums[k % 2] += -term if k % 4 >= 2 else term
        k += 1
        term *= angle / k
    return sums[0], sums[1]


@lru_cache(maxsize=8)
def _pi(precision: int) -> Decimal:
    """Machin 1706: pi = 16 arctan(1/5) - 4 arctan(1/239)."""
    with localcontext(Context(prec=precision + 5)):
        return 16 * _arctan_of_inverse(5) - 4 * _arctan_of_inverse(239)


def _arctan_of_inverse(n: int) -> Decimal:
    total, power, k = Decimal(0), Decimal(1) / n, 1
    while total + power / k != total:
        total += power / k if k % 4 == 1 else -power / k
        power /= n * n
        k += 2
    return total
