"""How much noise a budget needs, and how many steps it affords: the accountant, inverted.

Both answers are points of a grid, found by bisection with the accountant itself: every machine finds the same
one, and what is promised here is what a ledger will charge.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache

from privacy import accountant
from privacy.accountant import History
from privacy.mechanisms import DpSgd, Release
from security.errors import UsageError

MOST_STEPS = 1_000_000
"""`steps_affordable` looks no further."""

_GRID = 10_000
_LARGEST_NOISE_MULTIPLIER = 1 << 20


def noise_multiplier_for(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    records_per_unit: int = 1,
    spent: Iterable[Release] | Mapping[Release, int] = (),
) -> float:
    """The smallest noise multiplier, a multiple of 1e-4, that keeps a run within its budget.

    Args:
        epsilon: budget for the run and all of `spent` together, > 0.
        delta: of the budget, in (0, 1).
        sample_rate: probability that one unit enters one batch, in (0, 1].
        steps: DP-SGD steps of the whole run, over all its rounds.
        records_per_unit: most records of one unit (a person).
        spent: what was released before on the same budget.

    Returns:
        A noise multiplier for which `privacy.accountant.epsilon` gives at most `epsilon`.

    Raises:
        UsageError: if there is none, for one because `spent` is above the budget already.
        ValueError: if an argument is out of range.
    """
    past = accountant.history(spent)
    # The smallest noise that DpSgd accepts stands for "none given yet".
    run = DpSgd(noise_multiplier=1 / _GRID, sample_rate=sample_rate, steps=steps, records_per_unit=records_per_unit)
    found = _noise_multiplier(_positive(epsilon), delta, run, past)
    if not _within(epsilon, delta, past, replace(run, noise_multiplier=found)):
        raise AssertionError(f"calibration found {found}, which is above the budget epsilon = {epsilon}")
    return found


def steps_affordable(
    *,
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    sample_rate: float,
    spent: Iterable[Release] | Mapping[Release, int] = (),
) -> int:
    """How many DP-SGD steps a budget affords after `spent`: 0 if none, and never more than `MOST_STEPS`.

    Args:
        epsilon: budget for the steps and all of `spent` together, > 0.
        delta: of the budget, in (0, 1).
        noise_multiplier: standard deviation of the noise over the clipping norm, > 0.
        sample_rate: probability that one unit enters one batch, in (0, 1].
        spent: what was released before on the same budget.

    Raises:
        ValueError: if an argument is out of range.
    """
    return _steps(_positive(epsilon), delta, noise_multiplier, sample_rate, accountant.history(spent))


@lru_cache(maxsize=1024)
def _noise_multiplier(epsilon: float, delta: float, run: DpSgd, past: History) -> float:
    def enough(point: int) -> bool:
        return _within(epsilon, delta, past, replace(run, noise_multiplier=point / _GRID))

    if not _within(epsilon, delta, past):
        already = accountant.epsilon(dict(past), delta).epsilon
        raise UsageError(
            f"epsilon = {epsilon:g} can't be met: earlier releases on this budget cost {already:.4g} "
            f"at delta = {delta:g}; raise epsilon, or release no more"
        )
    low, high = 0, _GRID
    while not enough(high):
        low, high = high, 2 * high
        if high > _GRID * _LARGEST_NOISE_MULTIPLIER:
            raise UsageError(
                f"epsilon = {epsilon:g} at delta = {delta:g} can't be met by any noise multiplier up to "
                f"{_LARGEST_NOISE_MULTIPLIER:,} with {run.steps:,} steps at sample rate {run.sample_rate:g}; "
                "raise epsilon or delta, or plan fewer steps"
            )
    return _first(enough, low, high) / _GRID


@lru_cache(maxsize=1024)
def _steps(epsilon: float, delta: float, noise_multiplier: float, sample_rate: float, past: History) -> int:
    def too_many(steps: int) -> bool:
        run = DpSgd(noise_multiplier=noise_multiplier, sample_rate=sample_rate, steps=steps)
        return not _within(epsilon, delta, past, run)

    low, high = 0, 1
    while not too_many(high):
        if high == MOST_STEPS:
            return MOST_STEPS
        low, high = high, min(2 * high, MOST_STEPS)
    return _first(too_many, low, high) - 1


def _within(epsilon: float, delta: float, past: History, *more: Release) -> bool:
    releases = Counter(dict(past))
    releases.update(more)
    return accountant.epsilon(releases, delta).epsilon <= epsilon


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
