"""As `privacy.audit.one_run`, against a whole trade-off curve: stronger, for it says more of the mechanism
(Mahloujifar, Melis & Chaudhuri 2024, arXiv 2410.22235).

Let p_i be the probability of exactly i correct guesses among c. The paper's theorem bounds how quickly those can fall
off, by the curve: from a supposed tail of probability alpha, recursively, it follows how large all of them together
would have to be. If that is more than everything, the tail was less likely than alpha (algorithm 3).
"""

from __future__ import annotations

from privacy.audit.one_run import check_counts
from privacy.audit.trade_off import GaussianPrivacy, InverseBlowUp, of_gaussian

_LARGEST_MU = 40.0
_CLOSE = 1e-5


def contradicts(curve: InverseBlowUp, *, canaries: int, guesses: int, correct: int, alpha: float) -> bool:
    """Whether so many correct guesses would have probability below `alpha`, were the mechanism as the curve says.

    Args:
        curve: what is claimed.
        canaries, guesses, correct: as for `privacy.audit.one_run.p_value`.
        alpha: probability of a contradiction where there is none.

    Raises:
        ValueError: the counts don't go together, or alpha is not between 0 and 1.
    """
    check_counts(canaries, guesses, correct)
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be above 0 and below 1, got {alpha}")
    if guesses == 0:
        return False
    # Sums of i p_i (right) and (c - i) p_i (wrong) over the tail from i on, each over m: expected shares of guesses.
    right = alpha * correct / canaries
    wrong = alpha * (guesses - correct) / canaries
    for number in range(correct - 1, -1, -1):
        least = max(wrong, curve(min(1.0, right)))
        right += number / (guesses - number) * (least - wrong)
        if least == wrong:
            break  # neither changes any more
        wrong = least
        if right + wrong > guesses / canaries:
            return True
    return right + wrong > guesses / canaries


def lower_bound(*, canaries: int, guesses: int, correct: int, delta: float, alpha: float) -> float:
    """The largest epsilon at `delta` of a Gaussian mechanism that so many correct guesses contradict.

    A bound for mechanisms whose curve is a Gaussian's, as that of many noisy sums nearly is; what a claim itself says
    is asked by `contradicts` with the claim's own curve.

    Args:
        canaries, guesses, correct: as for `contradicts`.
        delta: that the epsilon is told at.
        alpha: probability of a bound that is too large.

    Returns:
        0 if nothing is contradicted.

    Raises:
        ValueError: as for `contradicts`.
    """

    def found(mu: float) -> bool:
        return contradicts(of_gaussian(mu), canaries=canaries, guesses=guesses, correct=correct, alpha=alpha)

    if not found(0.0):
        return 0.0
    low, high = 0.0, _LARGEST_MU
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) else (low, middle)
    return GaussianPrivacy(low).epsilon(delta)
