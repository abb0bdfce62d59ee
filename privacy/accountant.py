"""What a history of releases costs, in (epsilon, delta), for neighbours that add or remove one unit.

The figure is that of privacy loss distributions (PLD; Koskela et al. 2020, arXiv 1906.03049) rounded
pessimistically ("connect the dots", Doroshenko et al. 2022, arXiv 2207.04380): an upper bound for a history
that was fixed beforehand. Beside it stands Renyi differential privacy (RDP; Mironov et al. 2019, arXiv
1908.10530; converted by Canonne et al. 2020, arXiv 2004.00010, proposition 12), a bound by other means.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting import NeighboringRelation, dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, identity
from dp_accounting.rdp import RdpAccountant
from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS as _ORDERS
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon
from numpy.typing import NDArray

from privacy.mechanisms import Release

RELATION = "add or remove one unit"
ACCOUNTANT = "PLD, pessimistic, interval 0.001"

_NEIGHBOURS = NeighboringRelation.ADD_OR_REMOVE_ONE
_INTERVAL = 1e-3

# Where RDP finds more, nothing is claimed, and the grid of losses need not be built: it would fill the memory.
_LARGEST_EPSILON = 500.0

# The Fourier transforms behind PLD leave a rounding error in every tail: of either sign, up to 1e-16 a step in
# delta, as measured against the closed form of the Gaussian mechanism. Left alone, epsilon at delta = 1e-12 came
# out 0.025 too small after 10,000 steps. The allowance, in delta and for each step, is nine times that error.
_ROUNDING = 2.0**-50

History = frozenset[tuple[Release, int]]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The cost of a history: it is (epsilon, delta)-differentially private for the stated relation.

    Attributes:
        epsilon: upper bound by PLD; `math.inf` where none can be computed, and no claim be made.
        delta: at which both epsilons hold.
        rdp_epsilon: upper bound by RDP, as a cross-check; below about 1e-4 rounding governs it.
        relation: the neighbouring relation.
        accountant: how `epsilon` was computed.
    """

    epsilon: float
    delta: float
    rdp_epsilon: float
    relation: str = RELATION
    accountant: str = ACCOUNTANT


def epsilon(releases: Iterable[Release] | Mapping[Release, int], delta: float) -> Spent:
    """What `releases` cost together, at `delta`.

    Args:
        releases: in any order, or how often each was made. None at all cost nothing.
        delta: public, in (0, 1).

    Raises:
        ValueError: if delta is out of range, or a count is negative.
        dp_accounting.UnsupportedEventError: if a release can't be priced for this relation.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}")
    return _spent(history(releases), float(delta))


def delta_for(releases: Iterable[Release] | Mapping[Release, int], epsilon: float) -> float:
    """The delta, an upper bound by PLD, at which `releases` are (epsilon, delta)-differentially private.

    Args:
        releases: as for `epsilon`.
        epsilon: >= 0.

    Returns:
        A number in [0, 1]; 1 claims nothing.

    Raises:
        ValueError: if epsilon is negative or not a number, or a count is negative.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must be at least 0, got {epsilon}")
    return _delta(history(releases), float(epsilon))


def history(releases: Iterable[Release] | Mapping[Release, int]) -> History:
    """Releases as a multiset of smallest parts: 20 rounds of 10 steps and one of 200 are the same history.

    Raises:
        ValueError: if a count is negative.
    """
    counts: Counter[Release] = Counter()
    items = releases.items() if isinstance(releases, Mapping) else ((release, 1) for release in releases)
    for release, times in items:
        if times < 0:
            raise ValueError(f"a release can't have been made {times} times: {release.describe()}")
        part, repeats = release.parts()
        counts[part] += repeats * times
    return frozenset((part, count) for part, count in counts.items() if count)


@lru_cache(maxsize=4096)
def _spent(past: History, delta: float) -> Spent:
    if not past:
        return Spent(epsilon=0.0, delta=delta, rdp_epsilon=0.0)
    bound = math.inf
    rdp_epsilon = _rdp_epsilon(past, delta)
    if rdp_epsilon <= _LARGEST_EPSILON and delta > _rounding(past):
        bound = float(_losses(past).get_epsilon_for_delta(delta - _rounding(past)))
    return Spent(epsilon=bound, delta=delta, rdp_epsilon=rdp_epsilon)


@lru_cache(maxsize=4096)
def _delta(past: History, epsilon: float) -> float:
    if not past:
        return 0.0
    if _rdp_epsilon(past, 1e-5) > _LARGEST_EPSILON:
        return 1.0
    return min(1.0, float(_losses(past).get_delta_for_epsilon(epsilon)) + _rounding(past))


def _losses(past: History) -> PrivacyLossDistribution:
    composed = identity(value_discretization_interval=_INTERVAL)
    for part, count in _ordered(past):
        composed = composed.compose(_part_losses(part, count))
    return composed


def _rdp_epsilon(past: History, delta: float) -> float:
    total = np.zeros(len(_ORDERS))
    for part, count in _ordered(past):
        total += count * _part_rdp(part)
    with _quiet():
        return float(compute_epsilon(_ORDERS, total, delta)[0])


# The accountants of dp_accounting compose events and start from nothing each time. What they hold inside composes
# just as well and can be kept: a ledger of 20 unlike rounds, asked after each, takes 2 s instead of 17.


@lru_cache(maxsize=128)
def _part_losses(part: Release, count: int) -> PrivacyLossDistribution:
    event = dp_event.SelfComposedDpEvent(part.event(), count)
    return PLDAccountant(_NEIGHBOURS, _INTERVAL).compose(event)._pld


@lru_cache(maxsize=1024)
def _part_rdp(part: Release) -> NDArray[np.float64]:
    with _quiet():
        divergences: NDArray[np.float64] = RdpAccountant(_ORDERS, _NEIGHBOURS).compose(part.looser_event())._rdp
    return divergences


def _ordered(past: History) -> list[tuple[Release, int]]:
    # Always the same order, and so the same rounding.
    return sorted(past, key=lambda item: json.dumps(item[0].to_json(), sort_keys=True))


def _rounding(past: History) -> float:
    return _ROUNDING * sum(count for _, count in past)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops two warnings of the RDP accountant that come with ordinary parameters and change no claim.

    An order whose series doesn't converge is left out (the bound only gets looser); a divergence of about
    -1e-16 is taken for zero.
    """
    known = ("_compute_log_a_frac failed to converge", "Negative Renyi divergence")
    logger = logging.getLogger("absl")

    def unknown(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(known)

    logger.addFilter(unknown)
    try:
        yield
    finally:
        logger.removeFilter(unknown)
