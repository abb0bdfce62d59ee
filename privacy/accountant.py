"""What a history of releases costs, in (epsilon, delta), and between which neighbours.

The figure is that of privacy loss distributions (`privacy.losses`), rounded pessimistically: an upper bound for a
history that was fixed beforehand. Beside it stands Renyi differential privacy (`privacy.rdp`), a bound by other
means. A history with a release that only RDP may price (rule 4) is claimed by RDP alone, and says so.

Where noise is not quite drawn from what the price is about (rule 9), the distance of the two is taken out of
delta: with t the total variation between all releases as they are made and as they are priced, (epsilon, d)-privacy of
the priced ones is (epsilon, d + t (1 + e^epsilon))-privacy of those made. Distances add up like this whatever was seen
in between, for each is a bound given any past.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from privacy import losses, rdp
from privacy.mechanisms import FromTables, Release, RenyiPriced
from privacy.neighbours import Neighbours
from privacy.table_distance import delta_of_distance

RELATION = Neighbours.ADD_OR_REMOVE_ONE.value
RELATIONS = tuple(neighbours.value for neighbours in Neighbours)
ACCOUNTANT = "PLD, pessimistic, interval 0.001"
RDP_ACCOUNTANT = "RDP, orders 1.1 to 1024"

# An epsilon above this is no claim.
_LARGEST_EPSILON = 500.0

# Parts of delta that are tried, in turn, for the distance of noise: it hardly ever needs more than the first.
_FOR_DISTANCE = (2.0**-30, 2.0**-20, 2.0**-10, 2.0**-1)

History = frozenset[tuple[Release, int]]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The cost of a history: it is (epsilon, delta)-differentially private for the stated relation.

    Attributes:
        epsilon: upper bound; `math.inf` where none can be computed, and no claim be made.
        delta: at which both epsilons hold.
        rdp_epsilon: upper bound by RDP, as a cross-check.
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
        ValueError: if delta is out of range, a count is negative, a release can't be priced for the neighbours it is
            about, or two releases are about unlike neighbours.
    """
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}")
    return _spent(history(releases), float(delta))


def curve(releases: Iterable[Release] | Mapping[Release, int], deltas: Iterable[float]) -> list[Spent]:
    """What `releases` cost at each of `deltas`: one guarantee, seen from several sides.

    Raises:
        ValueError: as for `epsilon`.
    """
    past = dict(history(releases))
    return [epsilon(past, delta) for delta in deltas]


def delta_for(releases: Iterable[Release] | Mapping[Release, int], epsilon: float) -> float:
    """The delta, an upper bound, at which `releases` are (epsilon, delta)-differentially private.

    Args:
        releases: as for `epsilon`.
        epsilon: >= 0.

    Returns:
        A number in [0, 1]; 1 claims nothing.

    Raises:
        ValueError: if epsilon is negative or not a number; else as for `epsilon`.
    """
    return deltas_for(releases, [epsilon])[0]


def deltas_for(releases: Iterable[Release] | Mapping[Release, int], epsilons: Sequence[float]) -> list[float]:
    """`delta_for` at each of `epsilons`; many cost little more than one.

    Raises:
        ValueError: as for `delta_for`.
    """
    for value in epsilons:
        if not value >= 0:
            raise ValueError(f"epsilon must be at least 0, got {value}")
    past = history(releases)
    if not past:
        return [0.0] * len(epsilons)
    if _only_rdp(past):
        total, off = rdp.divergences(past), distance(dict(past))
        return [min(1.0, rdp.delta(total, value) + delta_of_distance(off, epsilon=value)) for value in epsilons]
    found, off = losses.of(past), distance(dict(past))
    if found is None:
        return [1.0] * len(epsilons)
    return [
        min(1.0, float(delta) + delta_of_distance(off, epsilon=value))
        for delta, value in zip(found.deltas(epsilons), epsilons, strict=True)
    ]


def renyi(releases: Iterable[Release] | Mapping[Release, int], order: float) -> float:
    """The Renyi divergence of one order, in nats, that bounds `releases` together.

    Args:
        releases: as for `epsilon`.
        order: one of `privacy.rdp.ORDERS`.

    Raises:
        ValueError: if the order is another; else as for `epsilon`.
    """
    index = rdp.ORDERS.index(order)
    past = history(releases)
    _relation(past)
    return math.fsum(count * float(rdp.of(part)[index]) for part, count in past)


def distance(releases: Iterable[Release] | Mapping[Release, int]) -> float:
    """Total variation, at most, between `releases` as they are made and as they are priced; mostly 0.

    Raises:
        ValueError: as for `epsilon`.
    """
    return math.fsum(times * part.distance for part, times in history(releases) if isinstance(part, FromTables))


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
def claim(past: History, delta: float) -> float:
    """The epsilon alone of `epsilon(past, delta)`, without its cross-check: for a search that asks often."""
    if not past:
        return 0.0
    bound = _by_rdp(past, delta) if _only_rdp(past) else _by_losses(past, delta)
    return bound if bound <= _LARGEST_EPSILON else math.inf


def _by_rdp(past: History, delta: float) -> float:
    total = rdp.divergences(past)
    return _beside_distance(past, delta, lambda kept: rdp.epsilon(total, kept))


def _by_losses(past: History, delta: float) -> float:
    found = losses.of(past)
    return math.inf if found is None else _beside_distance(past, delta, found.epsilon)


def _beside_distance(past: History, delta: float, epsilon_at: Callable[[float], float]) -> float:
    """An epsilon for what is left of delta once the distance of the noise is taken out of it."""
    off = distance(dict(past))
    if not off:
        return epsilon_at(delta)
    for part in _FOR_DISTANCE:
        bound = epsilon_at(delta * (1 - part))
        if delta_of_distance(off, epsilon=bound) <= part * delta:
            return bound
    return math.inf


@lru_cache(maxsize=4096)
def _spent(past: History, delta: float) -> Spent:
    if not past:
        return Spent(epsilon=0.0, delta=delta, rdp_epsilon=0.0)
    return Spent(
        epsilon=claim(past, delta),
        delta=delta,
        rdp_epsilon=_by_rdp(past, delta),
        relation=_relation(past).value,
        accountant=RDP_ACCOUNTANT if _only_rdp(past) else ACCOUNTANT,
    )


def _relation(past: History) -> Neighbours:
    """The neighbours that all releases are about; None at all cost nothing for any."""
    found = {part.relation: part for part, _ in past}
    if len(found) > 1:
        one, other = sorted(f"{part.describe()!r} for {relation.value!r}" for relation, part in found.items())
        raise ValueError(f"costs of unlike neighbours don't add: {one}, {other}")
    return next(iter(found), Neighbours.ADD_OR_REMOVE_ONE)


def relation_of(releases: Iterable[Release] | Mapping[Release, int]) -> str:
    """The neighbouring relation of what `releases` cost together.

    Raises:
        ValueError: as for `epsilon`.
    """
    return _relation(history(releases)).value


def accountant_of(releases: Iterable[Release] | Mapping[Release, int]) -> str:
    """Name of the accountant that prices `releases` together.

    Raises:
        ValueError: as for `epsilon`.
    """
    return RDP_ACCOUNTANT if _only_rdp(history(releases)) else ACCOUNTANT


def _only_rdp(past: History) -> bool:
    """Whether RDP must price the whole. Raises ValueError if nothing can."""
    relation = _relation(past)
    unpriced = [part for part, _ in past if isinstance(part, RenyiPriced) or not _has_losses(part, relation)]
    for part in unpriced:
        rdp.of(part)
    return bool(unpriced)


@lru_cache(maxsize=4096)
def _has_losses(part: Release, relation: Neighbours) -> bool:
    from dp_accounting.pld import PLDAccountant

    if relation is not Neighbours.ADD_OR_REMOVE_ONE:
        return False
    return bool(PLDAccountant(relation.of_dp_accounting(), losses.INTERVAL).supports(part.event()))
