"""How private a mechanism can at most be, from many independent runs of it on two neighbouring data sets.

The strongest audit there is, and the dearest: how often an adversary's test says "there" where the unit is there and
where it isn't are two counts of independent trials; whatever rates they rule out (Clopper & Pearson 1934) rule out
epsilons (Jagielski, Ullman & Oprea 2020, arXiv 2006.07709), or, where the curve is a Gaussian's, its mu (Nasr et al.
2023, arXiv 2302.07956).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from privacy.audit.trade_off import GaussianPrivacy, InverseBlowUp

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trials:
    """How often a test, fixed before, said "there".

    Attributes:
        with_unit: runs on the data set with the unit.
        detected: of them, those of which the test said so.
        without_unit: runs on the neighbour.
        false_alarms: of them, those of which the test said so.

    Raises:
        ValueError: a count is impossible.
    """

    with_unit: int
    detected: int
    without_unit: int
    false_alarms: int

    def __post_init__(self) -> None:
        if not (0 <= self.detected <= self.with_unit and 0 <= self.false_alarms <= self.without_unit):
            raise ValueError(f"impossible counts of trials: {self}")
        if min(self.with_unit, self.without_unit) < 1:
            raise ValueError("there must be trials of both kinds")


def lower_bound(trials: Trials, *, delta: float, alpha: float) -> float:
    """The largest epsilon that the trials rule out, at most `alpha` of the time wrongly.

    Args:
        trials: of runs that are independent.
        delta: of (epsilon, delta), in [0, 1).
        alpha: probability of a bound that is too large.

    Returns:
        0 if nothing is ruled out.
    """
    found, wrongly = _rates(trials, alpha)
    # "there" has probability `found` or more with the unit, `wrongly` or less without; "not there" the other way.
    return max(0.0, _ratio(found - delta, wrongly), _ratio(1 - wrongly - delta, 1 - found))


def gaussian_lower_bound(trials: Trials, *, delta: float, alpha: float) -> float:
    """As `lower_bound`, for mechanisms whose trade-off curve is a Gaussian's: of their mu, told as an epsilon."""
    found, wrongly = _rates(trials, alpha)
    if not 0 < wrongly < 1 or not 0 < found < 1:
        return 0.0
    mu = float(stats.norm.ppf(found) - stats.norm.ppf(wrongly))
    return GaussianPrivacy(mu).epsilon(delta) if mu > 0 else 0.0


def contradicts(curve: InverseBlowUp, trials: Trials, *, alpha: float) -> bool:
    """Whether the trials rule out a mechanism with this trade-off curve, at most `alpha` of the time wrongly.

    Args:
        curve: what is claimed.
        trials: of runs that are independent.
        alpha: probability of a contradiction where there is none.
    """
    found, wrongly = _rates(trials, alpha)
    return curve(found) > wrongly or curve(1 - wrongly) > 1 - found


def best_threshold(with_unit: Floats, without_unit: Floats, *, bound: Callable[[Trials], float]) -> float:
    """The score above which to say "there" so that trials like these would tell most.

    Args:
        with_unit, without_unit: scores of runs that are not counted again.
        bound: what trials tell.
    """
    inner = np.quantile(np.concatenate([with_unit, without_unit]), np.linspace(0.01, 0.99, 99))
    tried = np.concatenate([inner, [np.max(without_unit), np.min(with_unit)]])  # where all is told, between them

    def told(threshold: float) -> tuple[float, int]:
        trials = Trials(
            with_unit=len(with_unit),
            detected=int(np.sum(with_unit > threshold)),
            without_unit=len(without_unit),
            false_alarms=int(np.sum(without_unit > threshold)),
        )
        return bound(trials), trials.detected - trials.false_alarms

    return max((float(one) for one in tried), key=told)


def _rates(trials: Trials, alpha: float) -> tuple[float, float]:
    """Least rate of detection and most of false alarms, both right with probability 1 - alpha."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, got {alpha}")
    n, k = trials.with_unit, trials.detected
    found = 0.0 if k == 0 else float(stats.beta.ppf(alpha / 2, k, n - k + 1))
    n, k = trials.without_unit, trials.false_alarms
    wrongly = 1.0 if k == n else float(stats.beta.ppf(1 - alpha / 2, k + 1, n - k))
    return found, wrongly


def _ratio(likely: float, unlikely: float) -> float:
    return math.log(likely / unlikely) if likely > 0 and unlikely > 0 else 0.0
