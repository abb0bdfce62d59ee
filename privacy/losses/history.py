"""The losses of a history: convolution, by one Fourier transform for all its steps."""

import hashlib
import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy.losses.grid import INTERVAL, ROUNDING, Floats, Losses, Pmf, same
from privacy.losses.steps import gaussian_shift, of_gaussian, of_part
from privacy.mechanisms import Release, canonical

_WRAP = 2.0**-60  # probability that a composition may leave to an infinite loss
_MOST_CELLS = 1 << 21  # what is wider has an epsilon above 500 at any delta that matters

# Orders of the moment bounds that say how wide a composition is (Chernoff), in 1 / nats.
_MOMENTS = 2.0 ** np.arange(-4, 10)

_BUCKETS = 16
_MOST_CELLS_KEPT = 1 << 18

_NOTHING = same(Pmf(0, np.ones(1), 0.0))


@lru_cache(maxsize=16)
def of(history: frozenset[tuple[Release, int]]) -> Losses | None:
    """The losses of a history of smallest parts, whatever their order: bit for bit the same.

    Returns:
        None if they are too wide to compute: no claim then.

    Raises:
        dp_accounting.UnsupportedEventError: if a part can't be priced so.
    """
    ordered = sorted(history, key=lambda item: canonical(item[0]))
    # Gaussian mechanisms compose to one whose squared shift is the sum of theirs: exact, and no transform.
    squares = [(gaussian_shift(part), count) for part, count in ordered]
    shift = math.sqrt(math.fsum(count * square**2 for square, count in squares if square is not None))
    others = tuple(item for item, (square, _) in zip(ordered, squares, strict=True) if square is None)
    together = of_gaussian(shift) if shift else _NOTHING
    if not others:
        return together
    bounds = [_span(_log_moments(others, i) + _moments_of(_directions(together)[i])) for i in range(2)]
    size = 1 << max(high - low + 1 for low, high in bounds).bit_length()
    if size > _MOST_CELLS:
        return None
    remove, add = (_composed(others, together, i, size, bounds[i][1]) for i in range(2))
    return Losses(remove=remove, add=add, rounding=ROUNDING * (1 + sum(count for _, count in others)))


def _directions(losses: Losses) -> tuple[Pmf, Pmf]:
    return losses.remove, losses.add


def _moments_of(pmf: Pmf) -> Floats:
    """Logarithms of E exp(t loss) for t = each of `_MOMENTS`, then for t = minus each."""
    losses = INTERVAL * (pmf.lowest + np.arange(len(pmf.masses)))
    kept = pmf.masses > 0
    if not kept.any():
        return np.zeros(2 * len(_MOMENTS))
    exponents = np.outer(np.append(_MOMENTS, -_MOMENTS), losses[kept])
    top = exponents.max(axis=1, keepdims=True)
    found: Floats = top[:, 0] + np.log(np.exp(exponents - top) @ pmf.masses[kept])
    return found


@lru_cache(maxsize=1024)
def _moments_of_part(part: Release, direction: int) -> Floats:
    return _moments_of(_directions(of_part(part))[direction])


def _log_moments(items: Iterable[tuple[Release, int]], direction: int) -> Floats:
    total: Floats = np.sum([count * _moments_of_part(part, direction) for part, count in items], axis=0)
    return total


def _span(log_moments: Floats) -> tuple[int, int]:
    """Losses, in intervals, outside of which a composition has at most `_WRAP` on either side (Chernoff)."""
    up, down = np.split((log_moments - math.log(_WRAP)) / (np.tile(_MOMENTS, 2) * INTERVAL), 2)
    return -math.ceil(down.min()) - 1, math.ceil(up.min()) + 1


def _composed(items: tuple[tuple[Release, int], ...], together: Losses, direction: int, size: int, high: int) -> Pmf:
    # Which bucket a part falls into depends on the part alone. A history that grows by one part changes one bucket;
    # the others' transforms are kept.
    buckets: dict[int, list[tuple[Release, int]]] = {}
    for item in items:
        digest = hashlib.sha256(canonical(item[0]).encode()).digest()
        buckets.setdefault(digest[0] % _BUCKETS, []).append(item)
    parts = [(_directions(together)[direction], 1), *((_directions(of_part(part))[direction], n) for part, n in items)]
    if any(pmf.infinite >= 1 for pmf, _ in parts):
        return Pmf(0, np.zeros(1), 1.0)
    product = _transform(parts[0][0], size)
    for index in sorted(buckets):
        bucket = _kept_bucket if size <= _MOST_CELLS_KEPT else _bucket
        product = product * bucket(tuple(buckets[index]), direction, size)
    circle = np.fft.irfft(product, size)
    # Losses live on a circle of `size`. What lies above `high` wraps to the other end and counts as infinite as well;
    # what lies below wraps to the top, where it can only cost more.
    low = max(0, high - size + 1)
    masses = circle[np.arange(low, max(high, low) + 1) % size]
    whole = sum(n * math.log1p(-pmf.infinite) for pmf, n in parts)
    return Pmf(low, masses, -math.expm1(whole) + _WRAP)


def _bucket(items: tuple[tuple[Release, int], ...], direction: int, size: int) -> NDArray[np.complex128]:
    product = np.ones(size // 2 + 1, dtype=np.complex128)
    for part, count in items:
        product *= _transform(_directions(of_part(part))[direction], size) ** count
    return product


_kept_bucket = lru_cache(maxsize=64)(_bucket)


def _transform(pmf: Pmf, size: int) -> NDArray[np.complex128]:
    places = (pmf.lowest + np.arange(len(pmf.masses))) % size
    return np.fft.rfft(np.bincount(places, weights=pmf.masses, minlength=size))
