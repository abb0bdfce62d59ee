"""Bounds from one run with canaries: guesses of their coins, against what is claimed.

Three numbers of guesses are fixed before anything is seen: few, for leaks that stand out here and there; some; and all,
for mechanisms that hide nearly nothing. Each way and number has its part of the false alarms (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from privacy.audit import one_run, one_run_curve, one_shot
from privacy.audit.finding import Finding, LookedFor, Method, Way
from privacy.audit.guesses import fixed_number, guess
from privacy.audit.trade_off import InverseBlowUp

WAYS: Final = 2
"""Bounds that are drawn from one set of scores."""

_NUMBERS: Final = 3
_FEWEST: Final = 10  # canaries whose mean and deviation say something

_Bound = Callable[[int, int], float]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed of a mechanism.

    Attributes:
        trust: of the plan.
        epsilon, delta: as the accountant states them.
        curve: its whole trade-off curve.
    """

    trust: str
    epsilon: float
    delta: float
    curve: InverseBlowUp


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What came of looking for canaries in one way.

    Attributes:
        looked_for: the kind of canary.
        way: where it was looked for.
        scores: of each canary, finite; the higher, the more it looks planted.
        coins: whether it was.
        cosines: of each canary's direction with what was released as a whole; None where there is no such thing.
    """

    looked_for: LookedFor
    way: Way
    scores: npt.NDArray[np.float64]
    coins: npt.NDArray[np.bool_]
    cosines: npt.NDArray[np.float64] | None = None


def findings(seen: Seen, claim: Claim, *, alpha: float) -> list[Finding]:
    """Both bounds.

    Args:
        seen: scores and coins.
        claim: what they are held against.
        alpha: false alarms of both together.
    """
    m, delta, each = len(seen.scores), claim.delta, alpha / WAYS / _NUMBERS

    def plain(guesses: int, correct: int) -> float:
        return one_run.lower_bound(canaries=m, guesses=guesses, correct=correct, delta=delta, alpha=each)

    def curved(guesses: int, correct: int) -> float:
        return one_run_curve.lower_bound(canaries=m, guesses=guesses, correct=correct, delta=delta, alpha=each)

    def ruled_out(guesses: int, correct: int) -> bool:
        return one_run_curve.contradicts(claim.curve, canaries=m, guesses=guesses, correct=correct, alpha=each)

    return [
        _best(seen, claim, "epsilon-delta", plain, None, alpha / WAYS),
        _best(seen, claim, "trade-off", curved, ruled_out, alpha / WAYS),
    ]


def power(canaries: int, claim: Claim, *, alpha: float) -> float:
    """The largest epsilon that guesses of so many coins could show.

    Args:
        canaries: coins.
        claim: whose delta it is told at.
        alpha: false alarms of one bound.
    """
    return one_run_curve.lower_bound(
        canaries=canaries, guesses=canaries, correct=canaries, delta=claim.delta, alpha=alpha / _NUMBERS
    )


def can_contradict(canaries: int, claim: Claim, *, alpha: float) -> bool:
    """Whether guesses of so many coins, all right, would rule the claim out and show an epsilon above it.

    Args:
        canaries: coins.
        claim: by its own curve, and by its epsilon.
        alpha: false alarms of one bound.
    """
    each = alpha / _NUMBERS
    ruled_out = one_run_curve.contradicts(
        claim.curve, canaries=canaries, guesses=canaries, correct=canaries, alpha=each
    )
    return ruled_out and power(canaries, claim, alpha=alpha) >= claim.epsilon


def estimates(seen: Seen, claim: Claim) -> list[Finding]:
    """The one-shot estimate from the canaries that were planted beside those that weren't, where there are enough of
    both: nothing is proven."""
    if seen.cosines is None or min(seen.coins.sum(), (~seen.coins).sum()) < _FEWEST:
        return []
    planted, spread = seen.cosines[seen.coins], float(np.sqrt(np.mean(seen.cosines[~seen.coins] ** 2)))
    if not (spread > 0 and np.std(planted) > 0):
        return []
    return [
        Finding(
            looked_for=seen.looked_for,
            way=seen.way,
            method="one-shot",
            trust=claim.trust,
            claim="run",
            epsilon=one_shot.estimate(planted, spread=spread, delta=claim.delta),
            claimed=claim.epsilon,
            delta=claim.delta,
            alpha=None,
            power=one_shot.LARGEST,
            trials=len(planted),
            guesses=0,
            correct=0,
        )
    ]


def _best(
    seen: Seen,
    claim: Claim,
    method: Method,
    bound: _Bound,
    ruled_out: Callable[[int, int], bool] | None,
    alpha: float,
) -> Finding:
    m = len(seen.scores)
    few = fixed_number(m, bound, epsilon=claim.epsilon, delta=claim.delta)
    tried = [guess(seen.scores, seen.coins, guesses=number) for number in (few, round((few * m) ** 0.5), m)]
    found = max(tried, key=lambda one: bound(one.guesses, one.correct))
    return Finding(
        looked_for=seen.looked_for,
        way=seen.way,
        method=method,
        trust=claim.trust,
        claim="run",
        epsilon=bound(found.guesses, found.correct),
        claimed=claim.epsilon,
        delta=claim.delta,
        alpha=alpha,
        power=max(bound(one.guesses, one.guesses) for one in tried),
        trials=m,
        guesses=found.guesses,
        correct=found.correct,
        contradicted=ruled_out is not None and any(ruled_out(one.guesses, one.correct) for one in tried),
    )
