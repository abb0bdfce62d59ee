"""Sharing a secret among holders so that `threshold` of them can rebuild it and fewer learn nothing (Shamir 1979).

A holder is a positive number x; its share is the value at x of a polynomial over GF(p) whose constant is the secret and
whose other `threshold` − 1 coefficients are uniform.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from operator import mul
from typing import Final

from security.secure_sum.decoding import decode
from security.secure_sum.field import (
    ELEMENT_BYTES,
    PRIME,
    Entropy,
    evaluate,
    from_bytes,
    inverse,
    inverses,
    to_bytes,
    uniform,
)

SECRET_BYTES: Final = 32
SHARE_BYTES: Final = ELEMENT_BYTES

_LARGEST_HOLDER: Final = 2**31
_MOST_SUBSETS: Final = 5000  # tried where more shares are wrong than decoding finds; about 0.1 ms each at 100 shares


class ShareError(ValueError):
    """Shares that don't give the secret: too few, malformed, or too many of them wrong."""


def share(secret: bytes, *, at: Sequence[int], threshold: int, entropy: Entropy = os.urandom) -> dict[int, bytes]:
    """A share of 33 bytes for every holder.

    Args:
        secret: 32 bytes.
        at: the holders: different numbers from 1 to 2^31.
        threshold: how many shares rebuild the secret; fewer are independent of it.
        entropy: gives independent uniform bytes; whoever knows them knows the secret from one share.

    Raises:
        ValueError: a secret of another length, holders that can't be, or a threshold out of 1 to their number.
    """
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret to share has {SECRET_BYTES} bytes")
    _check_holders(at)
    if len(set(at)) != len(at) or not 1 <= threshold <= len(at):
        raise ValueError("holders are different, and at least as many as the threshold, which is at least 1")
    polynomial = [int.from_bytes(secret, "big"), *uniform(threshold - 1, entropy)]
    return {x: to_bytes(evaluate(polynomial, x)) for x in at}


def rebuild(shares: Mapping[int, bytes], *, threshold: int) -> bytes:
    """The secret, from the shares of the `threshold` lowest holders. A wrong one among them goes unnoticed.

    Raises:
        ShareError: too few shares, a share that is no element of the field, or a secret of more than 32 bytes.
        ValueError: holders that can't be, or a threshold below 1.
    """
    _check_request(shares, threshold)
    lowest = sorted(shares)[:threshold]
    try:
        values = [from_bytes(shares[x]) for x in lowest]
    except ValueError:
        raise ShareError("a share is malformed") from None
    secret = _secret_from(tuple(lowest), values)
    if secret is None:
        raise ShareError("the shares give no secret: one of them is wrong")
    return secret


def rebuild_checked(
    shares: Mapping[int, bytes], *, threshold: int, is_right: Callable[[bytes], bool]
) -> tuple[bytes, frozenset[int]]:
    """The secret, though some shares may be wrong, and whose are.

    Args:
        shares: all there are, by holder.
        threshold: with which the secret was shared.
        is_right: whether a candidate is the secret (its commitment or public key fits); called up to a few thousand
            times, so that work is bounded whatever was sent.

    Returns:
        The secret, for which `is_right` holds, and the smallest set of holders whose shares being wrong explains all
        shares. The set holds only malformed ones where a smallest isn't unique: so many are wrong that the others may
        be to blame as well. Who is in the set was named by arithmetic alone: a holder that lied, or a dealer that gave
        it a wrong share; and more liars than ⌊(shares − threshold + 1)/2⌋ can make an honest holder look like one.

    Raises:
        ShareError: too few well-formed shares, or no secret found: too many are wrong, or they were dealt wrong.
        ValueError: holders that can't be, or a threshold below 1.
    """
    _check_request(shares, threshold)
    values = {x: value for x in sorted(shares) if (value := _value_or_none(shares[x])) is not None}
    malformed = frozenset(shares.keys() - values.keys())
    if len(values) < threshold:
        raise ShareError(f"{len(values)} well-formed shares are too few to rebuild from: {threshold} are needed")

    holders = tuple(values)
    secret = _secret_from(holders[:threshold], list(values.values())[:threshold])
    if secret is not None and not is_right(secret):
        secret = None
    if _on_one_polynomial(holders, threshold, values):
        if secret is not None:
            return secret, malformed
        if len(values) > threshold:
            raise ShareError("all shares agree, on a wrong secret: they were dealt wrong")
        raise ShareError("a share is wrong, and there are too few to do without it")

    found = decode(values, terms=threshold)
    if found is not None and (candidate := _as_secret(found[0] if found else 0)) is not None and is_right(candidate):
        return candidate, malformed | {x for x, value in values.items() if evaluate(found, x) != value}
    if secret is not None and len(values) - threshold > 1:
        return secret, malformed
    return _by_leaving_out(values, threshold, is_right, malformed)


def _by_leaving_out(
    values: Mapping[int, int], threshold: int, is_right: Callable[[bytes], bool], malformed: frozenset[int]
) -> tuple[bytes, frozenset[int]]:
    """More shares are wrong than decoding finds, but `is_right` tells, if there aren't too many subsets to try."""
    holders = tuple(values)
    surplus = len(holders) - threshold
    if math.comb(len(holders), surplus) <= _MOST_SUBSETS:
        terms = [weight * values[x] % PRIME for weight, x in zip(_weights(holders), holders, strict=True)]
        for left_out in combinations(holders, surplus):
            # The weights without some holders: those of all, times Π (xⱼ − xᵢ)/xⱼ over the ones left out.
            factors = [math.prod(other - x for other in left_out) for x in holders]
            total = sum(map(mul, terms, factors)) * inverse(math.prod(left_out) % PRIME)
            candidate = _as_secret(total % PRIME)
            if candidate is not None and is_right(candidate):
                # With the secret itself as one more point, one wrong share of threshold + 1 is found for certain.
                return candidate, malformed | (frozenset(left_out) if surplus == 1 else frozenset())
    raise ShareError("too many shares are wrong to rebuild from")


def _check_request(shares: Mapping[int, bytes], threshold: int) -> None:
    _check_holders(shares)
    if threshold < 1:
        raise ValueError("a threshold is at least 1")
    if len(shares) < threshold:
        raise ShareError(f"{len(shares)} shares are too few to rebuild from: {threshold} are needed")


def _check_holders(at: Sequence[int] | Mapping[int, bytes]) -> None:
    if not all(1 <= x <= _LARGEST_HOLDER for x in at):
        raise ValueError("a holder is a number from 1 to 2^31")


def _value_or_none(data: bytes) -> int | None:
    try:
        return from_bytes(data)
    except ValueError:
        return None


def _as_secret(value: int) -> bytes | None:
    # The field has 297 elements that are no secret.
    return value.to_bytes(SECRET_BYTES, "big") if value < 1 << 8 * SECRET_BYTES else None


def _secret_from(holders: tuple[int, ...], values: Sequence[int]) -> bytes | None:
    return _as_secret(sum(map(mul, _weights(holders), values)) % PRIME)


@lru_cache(maxsize=64)
def _weights(holders: tuple[int, ...]) -> list[int]:
    """Lagrange's weights at 0: λᵢ = Π_{j≠i} xⱼ/(xⱼ − xᵢ). In a full graph they serve all clients."""
    product = math.prod(holders) % PRIME
    return [product * low % PRIME for low in inverses([x * _gaps(x, holders) % PRIME for x in holders])]


@lru_cache(maxsize=64)
def _parity(holders: tuple[int, ...], threshold: int) -> list[int]:
    """Weights whose sum over shares is zero if all lie on one polynomial, and else in one case of p.

    A word of the dual code, chosen at random (nobody who sends a share knows it).
    """
    chosen = uniform(len(holders) - threshold, os.urandom)
    return [
        evaluate(chosen, x) * low % PRIME
        for x, low in zip(holders, inverses([_gaps(x, holders) for x in holders]), strict=True)
    ]


def _on_one_polynomial(holders: tuple[int, ...], threshold: int, values: Mapping[int, int]) -> bool:
    total: int = sum(map(mul, _parity(holders, threshold), values.values()))
    return total % PRIME == 0


def _gaps(x: int, holders: tuple[int, ...]) -> int:
    """Π (xⱼ − x) over the others."""
    return math.prod([other - x for other in holders if other != x]) % PRIME
