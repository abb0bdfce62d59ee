"""How much noise a budget needs, and how many steps or rounds it affords: the accountant, inverted.

All answers are points of a grid, found by bisection with the accountant itself: every machine finds the same one,
and what is promised here is what a ledger will charge. A calibration covers everything a plan releases, metrics
included: name what isn't being calibrated under `also`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from privacy import accountant
from privacy.accountant import History
from privacy.mechanisms import DpSgd, Release
from security.errors import UsageError

MOST_STEPS = 1_000_000
"""`steps_affordable` and `rounds_affordable` look no further."""

GRID = 1e-4
"""Noise multipliers are multiples of this."""

_LARGEST_POINT = 10_000 << 20  # a noise multiplier of 2^20

_Releases = Iterable[Release] | Mapping[Release, int]


def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    records_per_unit: int = 1,
    also: _Releases = (),
    spent: _Releases = (),
) -> float:
    """The smallest noise multiplier, a multiple of 1e-4, that keeps a run of DP-SGD within its budget.

    Args:
        epsilon: budget for the run, `also` and `spent` together, > 0.
        delta: of the budget, in (0, 1).
        sample_rate: probability that one unit enters one batch, in (0, 1].
        steps: DP-SGD steps of the whole run, over all its rounds.
        records_per_unit: most records of one unit (a person).
        also: what else the run will release, such as the counts of every evaluation.
        spent: what was released before on the same budget.

    Returns:
        A noise multiplier for which `privacy.accountant.epsilon` gives at most `epsilon`.

    Raises:
        UsageError: if there is none, for one because `spent` is above the budget already.
        ValueError: if an argument is out of range.
    """
    run = DpSgd(noise_multiplier=1.0, sample_rate=sample_rate, steps=steps, records_per_unit=records_per_unit)
    return least_noise(run, epsilon=epsilon, delta=delta, also=also, spent=spent)


def least_noise(
    run: Release,
    *,
    epsilon: float,
    delta: float,
    noise: str = "noise_multiplier",
    grid: float = GRID,
    also: _Releases = (),
    spent: _Releases = (),
) -> float:
    """The smallest noise, a multiple of `grid`, that keeps a run by any mechanism within its budget.

    Args:
        run: all that is to be calibrated; its own noise doesn't matter.
        epsilon: budget for `run`, `also` and `spent` together, > 0.
        delta: of the budget, in (0, 1).
        noise: the field of `run` that holds the noise.
        grid: > 0.
        also: what else the run will release.
        spent: what was released before on the same budget.

    Raises:
        UsageError: if there is none up to 2^20 / 1e-4 times `grid`.
        ValueError: if an argument is out of range.
    """
    if not (math.isfinite(grid) and grid > 0):
        raise ValueError(f"grid must be a finite number above 0, got {grid}")
    before, planned = accountant.history(spent), accountant.history(also)
    others = _together(before, planned)
    # The noise given doesn't matter, so it mustn't tell one question from another.
    run = _with_noise(run, noise, 1.0)
    if not _within(_positive(epsilon), delta, others):
        # Whoever has to change something must know which of the two.
        _refuse(epsilon, delta, before, others)
    found = _noise(_positive(epsilon), delta, run, noise, grid, others)
    if not _within(epsilon, delta, others, _with_noise(run, noise, found)):
        raise AssertionError(f"calibration found {found}, which is above the budget epsilon = {epsilon}")
    return found


def least_noise_multiplier(
    release: Callable[[float], Release],
    *,
    times: int,
    epsilon: float,
    delta: float,
    also: _Releases = (),
) -> float:
    """The smallest noise multiplier, a multiple of 1e-4, for releases whose other fields hang on it too.

    Args:
        release: what is released at a noise multiplier; ValueError where there is no such release. More noise costs
            less.
        times: how often.
        epsilon: budget for all of it and `also` together, > 0.
        delta: of the budget, in (0, 1).
        also: what else the run will release.

    Raises:
        UsageError: if there is none.
        ValueError: if an argument is out of range.
    """
    return least_noise_together(lambda noise: {release(noise): times}, epsilon=epsilon, delta=delta, also=also)


def least_noise_together(
    releases: Callable[[float], Mapping[Release, int]],
    *,
    epsilon: float,
    delta: float,
    also: _Releases = (),
) -> float:
    """The smallest noise multiplier, a multiple of 1e-4, that several unlike mechanisms can share within one budget.

    Args:
        releases: all that is released at a noise multiplier, and how often; ValueError where there are no such
            releases. More noise costs less.
        epsilon: budget for all of it and `also` together, > 0.
        delta: of the budget, in (0, 1).
        also: what else will be released, whatever the noise.

    Raises:
        UsageError: if there is none.
        ValueError: if an argument is out of range.
    """
    others = accountant.history(also)
    if not _within(_positive(epsilon), delta, others):
        _refuse(epsilon, delta, frozenset(), others)

    def enough(point: int) -> bool:
        try:
            tried = accountant.history(releases(point / 10_000))
        except ValueError:  # too little noise, or too much
            return False
        return _within(epsilon, delta, _together(others, tried))

    low, high = 0, round(1 / GRID)
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST_POINT:
            raise UsageError(
                f"epsilon = {epsilon:g} at delta = {delta:g} can't be met by any noise multiplier for which there is "
                "such a release; raise epsilon or delta, plan fewer rounds or a smaller network, or have more honest "
                "clients"
            )
    return _first(enough, low, high) / 10_000


def steps_affordable(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    sample_rate: float,
    records_per_unit: int = 1,
    spent: _Releases = (),
) -> int:
    """How many DP-SGD steps a budget affords after `spent`: 0 if none, and never more than `MOST_STEPS`.

    Args:
        epsilon: budget for the steps and all of `spent` together, > 0.
        delta: of the budget, in (0, 1).
        noise_multiplier: standard deviation of the noise over the clipping norm, > 0.
        sample_rate: probability that one unit enters one batch, in (0, 1].
        records_per_unit: most records of one unit (a person).
        spent: what was released before on the same budget.

    Raises:
        ValueError: if an argument is out of range.
    """
    step = DpSgd(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=1, records_per_unit=records_per_unit)
    return rounds_affordable([step], epsilon=epsilon, delta=delta, spent=spent)


def rounds_affordable(each: _Releases, *, epsilon: float, delta: float, spent: _Releases = ()) -> int:
    """How many like rounds a budget affords after `spent`: 0 if none, and never more than `MOST_STEPS`.

    Args:
        each: what one round releases, metrics included; not empty.
        epsilon: budget for the rounds and all of `spent` together, > 0.
        delta: of the budget, in (0, 1).
        spent: what was released before on the same budget.

    Raises:
        ValueError: if an argument is out of range.
    """
    round_ = accountant.history(each)
    if not round_:
        raise ValueError("a round that releases nothing is affordable forever")
    return _rounds(_positive(epsilon), delta, round_, accountant.history(spent))


def _refuse(epsilon: float, delta: float, before: History, others: History) -> None:
    already = accountant.claim(before, delta)
    if not already <= epsilon or before == others:
        raise UsageError(
            f"epsilon = {epsilon:g} can't be met: earlier releases on this budget cost {already:.4g} "
            f"at delta = {delta:g}; raise epsilon, or release no more"
        )
    cost = accountant.claim(others, delta)
    raise UsageError(
        f"epsilon = {epsilon:g} can't be met: what else is planned, with what was released before, costs {cost:.4g} "
        f"at delta = {delta:g}; raise epsilon, give the other releases more noise, or plan fewer of them"
    )


@lru_cache(maxsize=1024)
def _noise(epsilon: float, delta: float, run: Release, noise: str, grid: float, others: History) -> float:
    def value(point: int) -> float:
        return point / 10_000 if grid == GRID else point * grid

    def enough(point: int) -> bool:
        try:
            tried = _with_noise(run, noise, value(point))
        except ValueError:  # less noise than the mechanism can be priced with
            return False
        return _within(epsilon, delta, others, tried)

    low, high = 0, round(1 / GRID)
    while not enough(high):
        low, high = high, 2 * high
        if high > _LARGEST_POINT:
            raise UsageError(
                f"epsilon = {epsilon:g} at delta = {delta:g} can't be met by any {noise.replace('_', ' ')} up to "
                f"{value(_LARGEST_POINT):,g} for {run.describe()!r}; raise epsilon or delta, or plan fewer steps"
            )
    return value(_first(enough, low, high))


@lru_cache(maxsize=1024)
def _rounds(epsilon: float, delta: float, each: History, past: History) -> int:
    def too_many(rounds: int) -> bool:
        together = _together(past, frozenset((part, count * rounds) for part, count in each))
        return not _within(epsilon, delta, together)

    low, high = 0, 1
    while not too_many(high):
        if high == MOST_STEPS:
            return MOST_STEPS
        low, high = high, min(2 * high, MOST_STEPS)
    return _first(too_many, low, high) - 1


def _together(*histories: History) -> History:
    total: Counter[Release] = Counter()
    for history in histories:
        total.update(dict(history))
    return frozenset(total.items())


def _within(epsilon: float, delta: float, past: History, *more: Release) -> bool:
    if not 0 < delta < 1:
        raise ValueError(f"delta must be above 0 and below 1, got {delta}")
    return accountant.claim(_together(past, accountant.history(more)), delta) <= epsilon


def _with_noise(run: Release, field: str, noise: float) -> Release:
    changed: Any = run
    return replace(changed, **{field: noise})  # type: ignore[no-any-return]


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """Where a condition starts to hold that fails at `low`, holds at `high` and is monotone between."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _positive(epsilon: float) -> float:
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ValueError(f"epsilon must be a finite number above 0, got {epsilon}")
    return float(epsilon)
