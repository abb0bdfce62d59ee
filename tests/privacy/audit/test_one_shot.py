"""The one-shot estimate: right for the Gaussian mechanism, which it can be computed for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from privacy.audit.one_shot import epsilon_between, estimate
from privacy.audit.trade_off import GaussianPrivacy


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_it_estimates_a_gaussian_mechanism(sigma: float) -> None:
    """Canaries in directions of their own, and noise: 1,000 of them, in 10,000 dimensions.

    Mean and deviation are each known to 1 / sqrt(1000), so the estimate to a fifth of itself in all but one of 1,000.
    """
    rng, d, k, delta = np.random.default_rng(7), 10_000, 1000, 1e-5
    directions = rng.standard_normal((k, d)) / math.sqrt(d)
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    released = directions.sum(0) + sigma * rng.standard_normal(d)
    cosines = directions @ released / np.linalg.norm(released)
    # what one canary stands out by, against the noise and all the others (the paper's own correction is the same)
    true = GaussianPrivacy(1 / math.sqrt(sigma**2 + k / d)).epsilon(delta)
    assert estimate(cosines, spread=1 / math.sqrt(d), delta=delta) == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize(
    "laws", [(1.0, 1.0, 0.0, 1.0), (0.5, 1.1, 0.0, 1.0), (0.5, 0.9, 0.0, 1.0), (0.0, 2.0, 0.0, 1.0)]
)
def test_the_distance_of_two_normal_laws_is_that_of_an_integral(laws: tuple[float, float, float, float]) -> None:
    delta = 1e-3
    found = epsilon_between(*laws, delta)
    one, other = stats.norm(*laws[:2]), stats.norm(*laws[2:])
    divergences = [
        integrate.quad(lambda x, p=p, q=q: max(0.0, p.pdf(x) - math.exp(found) * q.pdf(x)), -40, 40, limit=2000)[0]
        for p, q in ((one, other), (other, one))
    ]
    assert max(divergences) == pytest.approx(delta, rel=1e-2)


def test_equal_laws_are_no_distance_apart_and_foolish_ones_are_refused() -> None:
    assert epsilon_between(0.0, 1.0, 0.0, 1.0, 1e-5) == 0
    assert epsilon_between(1e6, 1.0, 0.0, 1.0, 1e-5) == 200
    with pytest.raises(ValueError, match="deviations"):
        epsilon_between(0.0, 0.0, 0.0, 1.0, 1e-5)
    with pytest.raises(ValueError, match="cosines"):
        estimate(np.array([0.5]), spread=1.0, delta=1e-5)
