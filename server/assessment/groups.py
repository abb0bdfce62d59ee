"""Groups side by side, and how far apart they are.

With a positive class: demographic parity compares how often each group is taken for it, equal opportunity how often
those who are of it, equalised odds also how often those who are not (Hardt, Price, Srebro 2016, arXiv 1610.02413); its
gap is the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from server.assessment.facts import LEAST, Gap, GroupRow, Groups, Measure, Share
from server.assessment.intervals import Largest, largest_difference, share

MOST_VALUES: Final = 50
_RANGES: Final = 4
_DISTINCT: Final = 10
CLIENT: Final = "client"

_Counts = dict[str, tuple[int, int]]


def groups_of(
    truth: npt.NDArray[np.int64],
    guess: npt.NDArray[np.int64],
    of: npt.NDArray[np.str_],
    *,
    column: str,
    positive: tuple[int, str] | None,
) -> Groups:
    """Rates of each group, and the gaps between them.

    Args:
        truth, guess: (n,) numbers of classes; a negative guess is none.
        of: the group of each example (n,), "" for none.
        column: name of what tells them apart.
        positive: number and name of the class that rates are about.
    """
    names = [str(name) for name in np.unique(of) if name != ""]
    right = guess == truth
    counts: dict[Measure, _Counts] = {"accuracy": _counts(right, of, names)}
    if positive is not None:
        taken, is_one = guess == positive[0], truth == positive[0]
        counts["positive_rate"] = _counts(taken, of, names)
        counts["true_positive_rate"] = _counts(taken[is_one], of[is_one], names)
        counts["false_positive_rate"] = _counts(taken[~is_one], of[~is_one], names)
    rows = tuple(
        GroupRow(
            name=name,
            n=counts["accuracy"][name][1],
            accuracy=_enough(counts, "accuracy", name),
            positive_rate=_enough(counts, "positive_rate", name),
            true_positive_rate=_enough(counts, "true_positive_rate", name),
            false_positive_rate=_enough(counts, "false_positive_rate", name),
        )
        for name in names
    )
    return Groups(
        column=column,
        positive=None if positive is None else positive[1],
        rows=rows,
        gaps=tuple(_gaps(counts)),
        others=int((of == "").sum()),
    )


def ranges(values: npt.NDArray[np.str_], missing: Sequence[str]) -> npt.NDArray[np.str_] | None:
    """A column of many numbers as four ranges with about equally many examples, by name; None for any other column."""
    lacking = np.isin(values, [*missing, ""])
    try:
        numbers = values[~lacking].astype(np.float64)
    except ValueError:
        return None
    if not np.isfinite(numbers).all() or len(np.unique(numbers)) <= _DISTINCT:
        return None
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _RANGES + 1), method="nearest"))
    place = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, len(edges) - 2)
    last = len(edges) - 2
    width = len(str(last + 1))
    names = [
        f"{i + 1:0{width}}: {edges[i]:g} to {'' if i == last else 'below '}{edges[i + 1]:g}" for i in range(last + 1)
    ]
    found = np.full(len(values), "missing", dtype=f"<U{max(7, *map(len, names))}")
    found[~lacking] = np.array(names)[place]
    return found


def _counts(hit: npt.NDArray[np.bool_], of: npt.NDArray[np.str_], names: Sequence[str]) -> _Counts:
    return {name: (int(hit[of == name].sum()), int((of == name).sum())) for name in names}


def _enough(counts: dict[Measure, _Counts], measure: Measure, name: str) -> Share | None:
    right, of = counts.get(measure, {}).get(name, (0, 0))
    return share(right, of) if of >= LEAST else None


def _gaps(counts: dict[Measure, _Counts]) -> Iterator[Gap]:
    compared = {measure: {n: c for n, c in own.items() if c[1] >= LEAST} for measure, own in counts.items()}
    for measure, own in compared.items():
        found = largest_difference(own)
        if found is not None:
            yield _gap(measure, found, len(own))
    rates = [compared.get(measure, {}) for measure in ("true_positive_rate", "false_positive_rate")]
    both = [found for own in rates if (found := largest_difference(own, among=2)) is not None]
    if len(both) == 2:
        widest = max(both, key=lambda one: one.value)
        low, high = max(one.low for one in both), max(one.high for one in both)
        together = Largest(value=widest.value, low=low, high=high, highest=widest.highest, lowest=widest.lowest)
        yield _gap("equalised_odds", together, min(map(len, rates)))


def _gap(measure: Measure, found: Largest, groups: int) -> Gap:
    return Gap(
        measure=measure,
        value=found.value,
        low=found.low,
        high=found.high,
        highest=found.highest,
        lowest=found.lowest,
        groups=groups,
    )
