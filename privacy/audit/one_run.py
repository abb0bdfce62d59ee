"""How private a mechanism can at most be, from guesses about one run (Steinke, Nasr & Jagielski 2023, arXiv
2305.08846).

Each of m canaries is planted or left out by a fair coin of its own. An adversary who sees what the mechanism released
guesses some of the coins. Were the mechanism (epsilon, delta)-differentially private, it could hardly be right more
often than by answering at random with the odds of randomised response: theorem 5.2. How often "hardly" is the p-value;
the largest epsilon at which it is still below what was agreed on is a lower bound of the mechanism's.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

_LARGEST = 100.0  # an epsilon beyond it is no claim that anybody made
_CLOSE = 1e-6


def p_value(*, canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Probability, at most, of so many correct guesses under (epsilon, delta)-differential privacy.

    Corollary 5.4 of the paper: with W ~ Binomial(guesses, 1 / (1 + e^-epsilon)) it is
    P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i.

    Args:
        canaries: m, each in or out by a fair coin of its own.
        guesses: how many coins were guessed; the others were passed over.
        correct: v, of the guesses.
        epsilon: >= 0.
        delta: in [0, 1].

    Raises:
        ValueError: the counts don't go together, or a parameter is out of range.
    """
    check_counts(canaries, guesses, correct)
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"epsilon must be at least 0 and delta from 0 to 1, got {epsilon} and {delta}")
    rightly = stats.binom(guesses, 1 / (1 + math.exp(-epsilon)))
    tail = float(rightly.sf(correct - 1))
    if delta == 0 or correct == 0:
        return min(1.0, tail)
    fewer = np.arange(1, correct + 1)
    # sums of the probabilities themselves: differences of tails would lose what is small
    below = np.cumsum(rightly.pmf(correct - fewer))
    return min(1.0, tail + 2 * canaries * delta * float(np.max(below / fewer)))


def lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """The largest epsilon that so many correct guesses rule out, at most `alpha` of the time wrongly.

    Args:
        canaries, guesses, correct, delta: as for `p_value`.
        alpha: probability of a bound that is too large.

    Returns:
        0 if nothing is ruled out.

    Raises:
        ValueError: as for `p_value`; or alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, got {alpha}")

    def ruled_out(epsilon: float) -> bool:
        found = p_value(canaries=canaries, guesses=guesses, correct=correct, epsilon=epsilon, delta=delta)
        return found <= alpha

    if not ruled_out(0.0):
        return 0.0
    low, high = 0.0, _LARGEST
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def check_counts(canaries: int, guesses: int, correct: int) -> None:
    """Raises ValueError where more was guessed than there was, or more was right than guessed."""
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"of {canaries} canaries {guesses} were guessed and {correct} rightly: that can't be")
