"""Intervals of proportions, and of the largest difference between several.

A proportion has Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22), which says something sensible at 0 and
1 too. A difference of two has Newcombe's hybrid score interval (Newcombe 1998, Stat. Med. 17, method 10), made of both
Wilson intervals. The largest difference among K groups is picked after the data were seen: its interval is made of the
intervals of all K (K - 1) / 2 pairs, each at confidence 1 - alpha / pairs (Bonferroni). They all hold at once with
probability 1 - alpha, and then so does this one:

    max over pairs of the least |difference|  <=  largest difference  <=  max over pairs of the greatest |difference|.

All take examples as independent: of several records of one person they say too much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from server.assessment.facts import CONFIDENCE, Share
from server.noisy_counts import Counts, accuracy


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest difference among several proportions.

    Attributes:
        value: highest less lowest.
        low, high: its interval, within 0..1.
        highest, lowest: names of the groups.
    """

    value: float
    low: float
    high: float
    highest: str
    lowest: str


def share(right: int, of: int, *, confidence: float = CONFIDENCE) -> Share:
    """A proportion with Wilson's interval.

    Raises:
        ValueError: of nothing, or more than all.
    """
    if not 0 <= right <= of or of == 0:
        raise ValueError(f"{right} of {of} is no proportion")
    found = accuracy([Counts(correct=right, total=of)], noise=0.0, confidence=confidence)
    return Share(value=right / of, low=found.low, high=found.high, of=of)


def difference(one: tuple[int, int], other: tuple[int, int], *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Newcombe's interval of `one - other`, each given as (how many, of how many)."""
    a, b = share(*one, confidence=confidence), share(*other, confidence=confidence)
    gap = a.value - b.value
    low = gap - ((a.value - a.low) ** 2 + (b.high - b.value) ** 2) ** 0.5
    high = gap + ((a.high - a.value) ** 2 + (b.value - b.low) ** 2) ** 0.5
    return max(-1.0, low), min(1.0, high)


def largest_difference(
    counts: Mapping[str, tuple[int, int]], *, confidence: float = CONFIDENCE, among: int = 1
) -> Largest | None:
    """The largest difference between two of several proportions.

    Args:
        counts: (how many, of how many) by group; none of nothing.
        confidence: of the interval.
        among: how many such differences the largest will be picked of, so that theirs holds together.

    Returns:
        None of fewer than two groups.
    """
    pairs = list(combinations(counts, 2))
    if not pairs:
        return None
    each = 1 - (1 - confidence) / (len(pairs) * among)
    bounds = [difference(counts[a], counts[b], confidence=each) for a, b in pairs]
    values = {name: right / of for name, (right, of) in counts.items()}
    highest, lowest = max(values, key=values.__getitem__), min(values, key=values.__getitem__)
    return Largest(
        value=values[highest] - values[lowest],
        low=max(max(0.0, low, -high) for low, high in bounds),
        high=max(max(abs(low), abs(high)) for low, high in bounds),
        highest=highest,
        lowest=lowest,
    )
