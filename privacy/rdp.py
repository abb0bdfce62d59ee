"""Renyi divergences of releases, and what they imply (RDP; Mironov 2017, arXiv 1702.07476).

Those of sampled Gaussian noise are integrated numerically, in both directions: so they hold for a unit of several
records too, and at broken orders, where the usual series is loose or doesn't converge. Others come from a mechanism's
published bound or from `dp_accounting`. A divergence grows with its order, so one that can't be computed is bounded
by that of a larger order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from privacy import losses
from privacy.mechanisms import Release, RenyiPriced, canonical
from privacy.neighbours import Neighbours

ORDERS: tuple[float, ...] = (
    *(1 + tenths / 10 for tenths in range(1, 100)),
    *map(float, range(11, 64)),
    *(128.0, 256.0, 512.0, 1024.0),
)
"""Orders of the Renyi divergence: `dp_accounting`'s own."""

# Logarithms of sums of thousands of terms: their error in one divergence stays below these.
_ROUNDING = 2.0**-44
_RELATIVE_ROUNDING = 2.0**-26

_MOST_POINTS = 1 << 16
_LARGEST_SHIFT = 1e4  # in standard deviations

# Orders that are integrated on one grid: it must be as long as the largest one asks.
_GROUPS = np.split(np.asarray(ORDERS), np.searchsorted(ORDERS, [2.0, 4.0, 11.0, 32.0, 100.0, 200.0, 400.0, 800.0]))


class UnpricedError(ValueError):
    """A release that no accountant can price for the neighbours it is about."""


def divergences(history: Iterable[tuple[Release, int]]) -> NDArray[np.float64]:
    """Of the whole history, an upper bound at each of `ORDERS`.

    Raises:
        UnpricedError: if a release can't be priced.
    """
    items = sorted(history, key=lambda item: canonical(item[0]))
    total: NDArray[np.float64] = np.sum([np.zeros(len(ORDERS)), *(count * of(part) for part, count in items)], axis=0)
    return total


def epsilon(total: NDArray[np.float64], delta: float) -> float:
    """The epsilon that divergences at `ORDERS` imply at `delta`: the best order's.

    Canonne, Kamath & Steinke 2020 (arXiv 2004.00010), proposition 12; 0 where that of Bretagnolle and Huber
    bounds the total variation distance by delta.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    return float(compute_epsilon(ORDERS, total, delta)[0])


def delta(total: NDArray[np.float64], epsilon: float) -> float:
    """The delta that divergences at `ORDERS` imply at `epsilon`."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_delta

    # An infinite one has an infinite bound there.
    return float(compute_delta(ORDERS, total, epsilon)[0]) if math.isfinite(epsilon) else 0.0


def divergence_for(order: float, epsilon: float, delta: float) -> float:
    """The largest divergence of one order that implies (epsilon, delta); may be below 0 (the same proposition)."""
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def epsilon_for(order: float, divergence: float, delta: float) -> float:
    """The inverse of `divergence_for`."""
    return divergence + math.log1p(-1 / order) - math.log(delta * order) / (order - 1)


@lru_cache(maxsize=4096)
def of(part: Release) -> NDArray[np.float64]:
    """Of one release, at each of `ORDERS`. Raises UnpricedError if it can't be priced."""
    found = np.asarray(part.renyi(ORDERS)) if isinstance(part, RenyiPriced) else _of_event(part)
    found = np.minimum.accumulate(np.where(np.isnan(found), math.inf, found)[::-1])[::-1]
    found.setflags(write=False)
    return found


def _of_event(part: Release) -> NDArray[np.float64]:
    shift = losses.gaussian_shift(part) if part.relation is Neighbours.ADD_OR_REMOVE_ONE else None
    if shift is not None:
        return np.asarray(ORDERS) * shift**2 / 2
    mixture, times = losses.mixture_of(part), losses.unrolled(part.event())[1]
    if mixture is not None and part.relation is Neighbours.ADD_OR_REMOVE_ONE:
        found = times * _of_mixture(*mixture)
    else:
        found = _of_other(part)
    return np.maximum(found, 0.0) * (1 + _RELATIVE_ROUNDING) + _ROUNDING


def _of_other(part: Release) -> NDArray[np.float64]:
    from dp_accounting import UnsupportedEventError
    from dp_accounting.rdp import RdpAccountant

    try:
        accountant = RdpAccountant(ORDERS, part.relation.of_dp_accounting())
        found: NDArray[np.float64] = accountant.compose(part.looser_event())._rdp
    except UnsupportedEventError as error:
        raise UnpricedError(f"{part.describe()!r} can't be priced for its neighbours, {part.relation.name}") from error
    except (OverflowError, ZeroDivisionError):
        # So little noise that an order overflows: price each alone.
        found = np.array([_of_order(part, order) for order in ORDERS])
    return found


def _of_order(part: Release, order: float) -> float:
    from dp_accounting.rdp import RdpAccountant

    try:
        accountant = RdpAccountant([order], part.relation.of_dp_accounting())
        return float(accountant.compose(part.looser_event())._rdp[0])
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _of_mixture(shifts: tuple[float, ...], weights: tuple[float, ...]) -> NDArray[np.float64]:
    """Between Gaussian noise and the same moved by random shifts: the larger direction, by quadrature.

    The pair dominates both neighbours' outcomes (Ganesh 2024, arXiv 2401.10294), so its divergences bound theirs. In
    standard deviations, the trapezoidal rule with spacing h errs by a factor of exp(-2 pi r / h) for an integrand that
    is analytic and bounded within r of the real line (Trefethen & Weideman 2014, theorem 5.1). Here r ends at the zeros
    of the mixture, pi / s from the line for shifts 0, s, 2s ... (factors exp(-j^2 s^2 / 2) keep the roots of a binomial
    polynomial real), and the Gaussian factor asks for h of a fraction of 1.
    """
    from scipy.special import logsumexp

    if shifts[-1] > _LARGEST_SHIFT:
        return np.full(len(ORDERS), math.inf)
    kept = np.asarray(weights) > 0
    s, log_weights = np.asarray(shifts)[kept, None], np.log(np.asarray(weights)[kept, None])
    spacing = min(1.0, 1 / shifts[1]) / 4
    found: list[float] = []
    for orders in _GROUPS:
        alphas = np.concatenate([orders, 1 - orders])  # exponents of the mixture, for either direction
        low, high = min(alphas.min() * s[-1, 0], 0.0) - 12, max(alphas.max() * s[-1, 0], 0.0) + 12
        if not (high - low) / spacing < _MOST_POINTS:
            found.extend([math.inf] * len(orders))
            continue
        x = np.linspace(low, high, math.ceil((high - low) / spacing) + 1)
        # Logarithm of the mixture over the noise alone, and of the latter times the spacing.
        ratio = np.logaddexp.reduce(log_weights + x * s - s**2 / 2, axis=0)
        base = math.log((x[1] - x[0]) / math.sqrt(2 * math.pi)) - x**2 / 2
        integrals = logsumexp(alphas[:, None] * ratio + base, axis=1).reshape(2, -1)
        found.extend(integrals.max(axis=0) / (orders - 1))
    return np.array(found)
