"""An estimate of client-level privacy from one run with canary clients (Andrew et al. 2023, arXiv 2302.03098).

Each canary client's update is a random direction of full length. How much of each is found again in what was released,
as a cosine, is nearly normal; so is, with mean 0, that of directions that nobody sent. The epsilon is that of telling
those two normal laws apart (algorithm 2). There the second has the variance 1/d of random directions; here it is
measured, on canaries that were left out: coordinates are no random directions. It is an estimate: nothing follows with
certainty.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

LARGEST = 200.0
"""Of an estimate: what is beyond is told as this."""


def estimate(cosines: npt.NDArray[np.float64], *, spread: float, delta: float) -> float:
    """Estimated epsilon at `delta`.

    Args:
        cosines: of each canary's direction with what was released; at least 2.
        spread: deviation from 0 of the same of directions that nobody sent.
        delta: in (0, 1).

    Raises:
        ValueError: too few cosines, or they are not in [-1, 1].
    """
    if len(cosines) < 2 or not np.all(np.abs(cosines) <= 1 + 1e-9):
        raise ValueError("an estimate takes at least 2 cosines, from -1 to 1")
    return epsilon_between(float(np.mean(cosines)), float(np.std(cosines, ddof=1)), 0.0, spread, delta)


def epsilon_between(mean_1: float, deviation_1: float, mean_0: float, deviation_0: float, delta: float) -> float:
    """The least epsilon at which two normal laws are (epsilon, delta)-close, in both directions.

    Args:
        mean_1, deviation_1: of one law; the deviation above 0.
        mean_0, deviation_0: of the other.
        delta: in (0, 1).

    Raises:
        ValueError: a deviation is not positive.
    """
    if not (deviation_1 > 0 and deviation_0 > 0):
        raise ValueError("deviations must be above 0")
    one, other = stats.norm(mean_1, deviation_1), stats.norm(mean_0, deviation_0)

    def excess(epsilon: float) -> float:
        return max(_divergence(one, other, epsilon), _divergence(other, one, epsilon)) - delta

    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST) > 0:
        return LARGEST
    return float(optimize.brentq(excess, 0.0, LARGEST, xtol=1e-6))


def _divergence(p: stats.rv_continuous, q: stats.rv_continuous, epsilon: float) -> float:
    """E_epsilon(P || Q) = P(S) - e^epsilon Q(S) over S where p > e^epsilon q: a set between roots of a parabola."""
    (m, s), (n, t) = p.args, q.args
    # log p - log q - epsilon = a x^2 + b x + c
    a = (1 / t**2 - 1 / s**2) / 2
    b = m / s**2 - n / t**2
    c = (n**2 / t**2 - m**2 / s**2) / 2 + math.log(t / s) - epsilon
    total = 0.0
    for low, high in _where_positive(a, b, c):
        total += p.cdf(high) - p.cdf(low) - math.exp(epsilon) * (q.cdf(high) - q.cdf(low))
    return total


def _where_positive(a: float, b: float, c: float) -> list[tuple[float, float]]:
    if abs(a) < 1e-12 * max(1.0, abs(b)):
        if b == 0:
            return [(-math.inf, math.inf)] if c > 0 else []
        return [(-c / b, math.inf)] if b > 0 else [(-math.inf, -c / b)]
    under = b * b - 4 * a * c
    if under <= 0:
        return [(-math.inf, math.inf)] if a > 0 else []
    first, second = sorted(((-b - math.sqrt(under)) / (2 * a), (-b + math.sqrt(under)) / (2 * a)))
    return [(-math.inf, first), (second, math.inf)] if a > 0 else [(first, second)]
