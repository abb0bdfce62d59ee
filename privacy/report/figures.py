"""The report's numbers, from the accountant: what charges cost over time, at other deltas, and to an attacker.

Every figure goes through `privacy.accountant`, which keeps what it computed for each multiset of releases: a
thousand clients that share a few histories cost as much as a few clients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Literal

from privacy import accountant
from privacy import meaning as attacks
from privacy.accountant import Spent
from privacy.mechanisms import Release, release_from_json
from privacy.report.accounts import CurvePoint, Meaning, Path, Point, RocPoint
from privacy.report.views import ReleaseCounts

Counts = Counter[Release]

MOST_POINTS = 16
"""Points of a path that are computed; between them lines are drawn."""

_MOST_POINTS_OF_SLOW = 5
_DELTAS = tuple(10 ** (-exponent / 2) for exponent in range(20, 1, -1))
_FALSE_POSITIVES = (
    *(10 ** (-4 + step / 4) for step in range(9)),  # 1e-4 .. 1e-2
    *(0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)


class UnknownReleaseError(Exception):
    """A charge that can't be priced: no epsilon is claimed for whoever made it."""


def counts_of(releases: ReleaseCounts) -> Counts:
    """Releases read from JSON.

    Raises:
        UnknownReleaseError: a mechanism is unknown or malformed.
    """
    found: Counts = Counter()
    for release, count in releases:
        try:
            found[_release(tuple(release.items()))] += count
        except (ValueError, TypeError) as error:
            raise UnknownReleaseError from error
    return found


@lru_cache(maxsize=4096)
def _release(items: tuple[tuple[str, object], ...]) -> Release:
    return release_from_json(dict(items))


def cost(charged: Mapping[Release, int], delta: float) -> Spent:
    """What `charged` cost together; epsilons are infinite where none can be computed."""
    try:
        return accountant.epsilon(charged, delta)
    except ValueError:  # such as releases that are about unlike neighbours
        return unpriced(delta)


def unpriced(delta: float) -> Spent:
    """What is said of charges that have no price: nothing is claimed."""
    return Spent(epsilon=math.inf, delta=delta, rdp_epsilon=math.inf)


def finite(value: float | None) -> float | None:
    """None for what isn't a finite number."""
    return value if value is not None and math.isfinite(value) else None


def spread(first: int, last: int, most: int) -> list[int]:
    """At most `most` whole numbers from `first` to `last`, both among them, denser at the start where epsilon bends."""
    if last < first:
        return []
    length = last - first
    if length < most:
        return list(range(first, last + 1))
    return sorted({first + round(length * (step / (most - 1)) ** 1.5) for step in range(most)})


def path_points(history: Sequence[tuple[int, Counts]], delta: float) -> tuple[Point, ...]:
    """Epsilon after some of the charges of `history` (place and releases, in order); the last is always among them."""
    places = sorted({place for place, _ in history})
    if not places:
        return ()
    chosen = {places[index] for index in spread(0, len(places) - 1, _points(history))}
    total: Counts = Counter()
    points = []
    for index, (place, releases) in enumerate(history):
        total.update(releases)
        last_here = index + 1 == len(history) or history[index + 1][0] != place
        if last_here and place in chosen:
            value = finite(cost(total, delta).epsilon)
            if value is not None:
                points.append(Point(at=place, value=value))
    return tuple(points)


def forecast(
    charged: Counts, each: Counts, delta: float, *, last: Point, planned: int, limit: float | None
) -> tuple[tuple[Point, ...], int | None]:
    """Epsilon to the end of the plan if every round to come charges `each`, and the last round that `limit` covers.

    The limit ends the forecast: a client refuses the round that would pass it.
    """

    def after(rounds: int) -> float:
        total = Counter(charged)
        for release, count in each.items():
            total[release] += count * rounds
        return cost(total, delta).epsilon

    to_come = planned - last.at
    if to_come <= 0 or not each:
        return (), None
    covered = to_come
    if limit is not None and not after(to_come) <= limit * (1 + 1e-9):
        low, high = 0, to_come
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if after(middle) <= limit * (1 + 1e-9) else (low, middle)
        covered = low
    most = max(2, _points([(0, each)]) // 2)
    steps = [step for step in spread(0, covered, most) if step > 0]
    points = [Point(at=last.at + step, value=after(step)) for step in steps]
    finite_points = tuple(point for point in points if math.isfinite(point.value))
    return (last, *finite_points), last.at + covered if covered < to_come else None


def _points(history: Sequence[tuple[int, Counts]]) -> int:
    # A Poisson batch with several records a unit is a mixture that takes seconds to price, once a count.
    slow = any(
        getattr(release, "records_per_unit", 1) > 1 and getattr(release, "sample_rate", 1) < 1
        for _, releases in history
        for release in releases
    )
    return _MOST_POINTS_OF_SLOW if slow else MOST_POINTS


def curve(charged: Mapping[Release, int], delta: float) -> tuple[CurvePoint, ...]:
    """Epsilon over delta; the claim's own delta is among them."""
    points = []
    for value in sorted({*_DELTAS, delta}):
        epsilon = finite(cost(charged, value).epsilon)
        if epsilon is not None:
            points.append(CurvePoint(delta=value, epsilon=epsilon))
    return tuple(points)


def meaning(charged: Mapping[Release, int], *, failure: float) -> Meaning:
    """What an attacker gains at most from `charged` (`privacy.meaning`)."""
    by_rdp = accountant.accountant_of(charged) == accountant.RDP_ACCOUNTANT
    return _meaning(attacks.pairs_of(charged, failure=failure), failure, source="rdp" if by_rdp else "pld")


def meaning_of_pair(epsilon: float, delta: float) -> Meaning:
    """The same from (epsilon, delta) alone: a looser bound, for a history whose distribution isn't at hand."""
    return _meaning([(epsilon, delta)], delta, source="pair")


def _meaning(pairs: attacks.Pairs, failure: float, *, source: Literal["pld", "rdp", "pair"]) -> Meaning:
    found = attacks.meaning_of_pairs(pairs, failure=failure)
    roc = [
        RocPoint(false_positives=rate, true_positives=attacks.true_positives(pairs, rate))
        for rate in (0.0, *_FALSE_POSITIVES)
    ]
    return Meaning(
        advantage=found.advantage,
        certainty=found.certainty,
        failure=found.failure,
        found_at_1_percent=found.found_at_1_percent,
        found_at_0_1_percent=found.found_at_0_1_percent,
        roc=tuple(roc),
        source=source,
    )


def honest(releases: Iterable[Release]) -> int | None:
    """Fewest honest clients that some of these secure sums need; None if there is no such sum."""
    needed = [getattr(release, "honest", None) for release in releases]
    return max((number for number in needed if number is not None), default=None)


def longest_path(paths: Sequence[Path]) -> int:
    """The largest place that some path or its forecast reaches."""
    return max((point.at for path in paths for point in (*path.points, *path.forecast)), default=0)
