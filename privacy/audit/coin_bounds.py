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

from privacy.audit import one_run, one_run_curve
from privacy.audit.finding import Finding
from privacy.audit.guesses import fixed_number, guess
from privacy.audit.trade_off import InverseBlowUp

WAYS: Final = 2
"""Bounds that are drawn from one set of scores."""

_NUMBERS: Final = 3

_Bound = Callable[[int, int], float]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What is claimed of a mechanism.

    Attributes:
        what: in words.
        epsilon, delta: as the accountant states them.
        curve: its whole trade-off curve.
    """

    what: str
    epsilon: float
    delta: float
    curve: InverseBlowUp


def findings(
    name: str,
    adversary: str,
    scores: npt.NDArray[np.float64],
    coins: npt.NDArray[np.bool_],
    claim: Claim,
    *,
    alpha: float,
) -> list[Finding]:
    """Both bounds.

    Args:
        name: of the canaries.
        adversary: who scored them.
        scores, coins: as for `privacy.audit.guesses.guess`.
        claim: what they are held against.
        alpha: false alarms of both together.
    """
    m, delta, each = len(scores), claim.delta, alpha / WAYS / _NUMBERS

    def plain(guesses: int, correct: int) -> float:
        return one_run.lower_bound(canaries=m, guesses=guesses, correct=correct, delta=delta, alpha=each)

    def curved(guesses: int, correct: int) -> float:
        return one_run_curve.lower_bound(canaries=m, guesses=guesses, correct=correct, delta=delta, alpha=each)

    def ruled_out(guesses: int, correct: int) -> bool:
        return one_run_curve.contradicts(claim.curve, canaries=m, guesses=guesses, correct=correct, alpha=each)

    return [
        _best(f"{name}, (epsilon, delta)", adversary, scores, coins, claim, plain, None, alpha / WAYS),
        _best(f"{name}, trade-off curve", adversary, scores, coins, claim, curved, ruled_out, alpha / WAYS),
    ]


def _best(
    name: str,
    adversary: str,
    scores: npt.NDArray[np.float64],
    coins: npt.NDArray[np.bool_],
    claim: Claim,
    bound: _Bound,
    ruled_out: Callable[[int, int], bool] | None,
    alpha: float,
) -> Finding:
    m = len(scores)
    few = fixed_number(m, bound, epsilon=claim.epsilon, delta=claim.delta)
    tried = [guess(scores, coins, guesses=number) for number in (few, round((few * m) ** 0.5), m)]
    found = max(tried, key=lambda one: bound(one.guesses, one.correct))
    return Finding(
        name=name,
        kind="bound",
        adversary=adversary,
        claim=claim.what,
        epsilon=bound(found.guesses, found.correct),
        claimed=claim.epsilon,
        delta=claim.delta,
        alpha=alpha,
        power=max(bound(one.guesses, one.guesses) for one in tried),
        seen=f"{m} canaries, {found.correct} of {found.guesses} guesses right",
        contradicted=ruled_out is not None and any(ruled_out(one.guesses, one.correct) for one in tried),
    )
