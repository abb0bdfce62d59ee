"""Guesses of coins from scores: the highest were planted, the lowest not, the middle is passed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from privacy.audit.trade_off import GaussianPrivacy

_LEAST: Final = 10
_LARGEST_MU: Final = 40.0


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """How an adversary did.

    Attributes:
        canaries: whose coins there were.
        guesses: how many it guessed.
        correct: how many of them rightly.
    """

    canaries: int
    guesses: int
    correct: int


def guess(scores: npt.NDArray[np.float64], planted: npt.NDArray[np.bool_], *, guesses: int) -> Guesses:
    """Half of the guesses for the highest scores, half for the lowest; or, where all are guessed, each by the half of
    the way between the quartiles that its score lies in: coins don't fall evenly, so that halves would be wrong of some
    even where nothing is hidden.

    Args:
        scores: one for each canary, finite; the higher, the more it looks planted.
        planted: the coins.
        guesses: how many to guess, fixed before the scores were seen; an odd one's middle guess is "planted".

    Raises:
        ValueError: lengths differ, a score is not finite, or there are more guesses than canaries.
    """
    if scores.shape != planted.shape or scores.ndim != 1:
        raise ValueError(f"{scores.shape} scores for {planted.shape} coins")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    if not 0 <= guesses <= len(scores):
        raise ValueError(f"{guesses} guesses for {len(scores)} canaries")
    if guesses == len(scores) > 0:
        low_quarter, high_quarter = np.quantile(scores, (0.25, 0.75))
        said = scores > low_quarter + (high_quarter - low_quarter) / 2
        return Guesses(canaries=guesses, guesses=guesses, correct=int(np.sum(said == planted)))
    order = np.argsort(scores, kind="stable")
    low = guesses // 2
    high = guesses - low
    correct = int(np.sum(~planted[order[:low]])) + int(np.sum(planted[order[len(scores) - high :]]))
    return Guesses(canaries=len(scores), guesses=guesses, correct=correct)


def fixed_number(canaries: int, bound: Callable[[int, int], float], *, epsilon: float, delta: float) -> int:
    """How many coins to guess: as many as would tell most, were the claim just true of a Gaussian mechanism.

    It follows from the claim alone, so it may be fixed before anything was seen.

    Args:
        canaries: how many there are.
        bound: from (guesses, correct) to an epsilon.
        epsilon, delta: what is claimed.
    """
    if canaries <= _LEAST:
        return canaries
    mu = mu_of(epsilon, delta)
    tried: list[int] = sorted({round(n) for n in np.geomspace(_LEAST, canaries, 25)})
    return max(tried, key=lambda n: bound(n, int(n * accuracy(mu, n / canaries))))


def accuracy(mu: float, share: float) -> float:
    """Expected share of right guesses among the most extreme scores, if scores are N(0, 1) and N(mu, 1).

    Args:
        mu: distance of scores of those planted from those left out.
        share: of all canaries that are guessed, in (0, 1].
    """
    beyond = lambda t: float(stats.norm.sf(t) + stats.norm.sf(t - mu)) / 2 - share / 2  # noqa: E731
    threshold = optimize.brentq(beyond, -50, 50 + mu)
    return float(stats.norm.sf(threshold - mu)) / share


def mu_of(epsilon: float, delta: float) -> float:
    """The Gaussian mechanism's mu that costs epsilon at delta; at most 40."""
    if GaussianPrivacy(_LARGEST_MU).epsilon(delta) <= epsilon:
        return _LARGEST_MU
    return float(optimize.brentq(lambda mu: GaussianPrivacy(mu).epsilon(delta) - epsilon, 0.0, _LARGEST_MU))
