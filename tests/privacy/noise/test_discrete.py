"""Rule 9: table truncation enters delta, so the distance of the table from the distribution is proven and small."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import (
    DiscreteGaussianTable,
    ReproducibleNoise,
    SecretNoise,
    delta_of_distance,
    discrete_gaussian_table,
)

FALSE_ALARM = 1e-6
SIGMAS = [0.125, 0.5, 1.0, 3.7, 100.0]


def exact_probabilities(sigma: float, most: int) -> list[mpmath.mpf]:
    """Of -most .. most, in the precision of the context."""
    weight = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * mpmath.mpf(sigma) ** 2)) for k in range(2 * most + 50)]
    total = weight[0] + 2 * sum(weight[1:])
    return [weight[abs(k)] / total for k in range(-most, most + 1)]


def thresholds(table: DiscreteGaussianTable) -> list[int]:
    return [int(upper) << 64 | int(lower) for upper, lower in zip(table._upper, table._lower, strict=True)]


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_distance_is_a_bound_and_a_near_one(sigma: float) -> None:
    table = discrete_gaussian_table(sigma)
    with mpmath.workprec(500):
        steps = [0, *thresholds(table), 2**128]
        drawn = [mpmath.mpf(after - before) / 2**128 for before, after in itertools.pairwise(steps)]
        exact = exact_probabilities(sigma, table.largest)
        distance = (sum(abs(a - b) for a, b in zip(drawn, exact, strict=True)) + 1 - sum(exact)) / 2
        assert len(drawn) == 2 * table.largest + 1
        assert distance <= table.distance
        assert table.distance <= 4 * len(drawn) * 2.0**-128
    assert thresholds(table) == sorted(thresholds(table))


def test_at_the_largest_sigma_the_distance_is_still_nothing() -> None:
    assert discrete_gaussian_table(2.0**16).distance < 1e-32


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("make", [lambda: ReproducibleNoise(b"counts"), SecretNoise], ids=["reproducible", "secret"])
def test_distribution(make: type[SecretNoise], sigma: float) -> None:
    n, most = 400_000, max(1, round(3 * sigma))
    drawn = make().discrete_gaussian((n,), sigma).clamp(-most, most).numpy()
    exact = np.array([float(p) for p in exact_probabilities(sigma, most)])
    exact[[0, -1]] += (1 - exact.sum()) / 2
    found, possible = np.bincount(drawn + most, minlength=2 * most + 1), n * exact > 5
    assert not found[~possible].any()
    if possible.sum() > 1:
        assert stats.chisquare(found[possible], n * exact[possible] / exact[possible].sum()).pvalue > FALSE_ALARM


@pytest.mark.parametrize("sigma", [0.5, 2.0, 1000.0, 2.0**16])
def test_moments(sigma: float) -> None:
    n = 400_000
    x = ReproducibleNoise(b"moments").discrete_gaussian((n,), sigma).double()
    k = np.arange(-40, 41)
    weight = np.exp(-(k**2) / (2 * sigma**2))
    variance = float(weight @ k**2 / weight.sum()) if sigma < 4 else sigma**2  # from 2 on, equal to the last digit
    fourth = float(weight @ k**4 / weight.sum()) if sigma < 4 else 3 * sigma**4
    z = stats.norm.isf(FALSE_ALARM / 2)
    assert abs(float(x.mean())) < z * math.sqrt(variance / n)
    assert abs(float(x.square().mean()) - variance) < z * math.sqrt((fourth - variance**2) / n)


def test_no_value_tells_of_another_nor_do_clients() -> None:
    n = 400_000
    x = ReproducibleNoise(b"client 1").discrete_gaussian((n,), 20.0).double() / 20
    y = ReproducibleNoise(b"client 2").discrete_gaussian((n,), 20.0).double() / 20
    z = stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(n)
    for lag in (1, 2, 8192, 16_384):
        assert abs(float((x[lag:] * x[:-lag]).mean())) < z
    assert abs(float((x * y).mean())) < z


@pytest.mark.parametrize("sigma", SIGMAS)
def test_a_draw_is_the_number_of_thresholds_reached(sigma: float) -> None:
    table = discrete_gaussian_table(sigma)
    limits = thresholds(table)
    generator = np.random.default_rng(0)
    near = [min(max(limit + off, 0), 2**128 - 1) for limit in limits[:: max(1, len(limits) // 50)] for off in (-1, 0)]
    anywhere = [int(generator.integers(2**63)) << 65 for _ in range(200)]
    for number in [0, 2**128 - 1, *near, *anywhere]:
        found = table.draw(np.array([number >> 64], dtype=np.uint64), lambda n=number: n & (1 << 64) - 1)
        assert int(found[0]) + table.largest == sum(limit <= number for limit in limits)


def test_the_lower_half_of_a_draw_is_made_only_when_it_matters() -> None:
    table = discrete_gaussian_table(3.0)

    def never() -> int:
        raise AssertionError

    table.draw(np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64), never)


def test_a_table_is_made_once() -> None:
    assert discrete_gaussian_table(5.0) is discrete_gaussian_table(5.0)


@pytest.mark.parametrize("sigma", [0.0, 0.1, -1.0, 70_000.0, math.inf, math.nan])
def test_a_sigma_out_of_range_is_refused(sigma: float) -> None:
    with pytest.raises(ValueError, match="between 2"):
        discrete_gaussian_table(sigma)


def test_the_same_noise_on_every_machine() -> None:
    assert ReproducibleNoise(b"golden").discrete_gaussian((6,), 1000.0).tolist() == GOLDEN


GOLDEN = [886, 999, 370, 1031, -669, -738]


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("off", [1e-3, 1e-2])
def test_a_distance_costs_as_much_delta_as_is_said(epsilon: float, off: float) -> None:
    """Against the definition of (epsilon, delta), for one noisy count and the worst that a distance can do."""

    def delta(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.maximum(p - math.exp(epsilon) * q, 0).sum())

    k = np.arange(-60, 61)
    p, q = (np.exp(-((k - shift) ** 2) / 8) for shift in (0, 1))
    p, q = p / p.sum(), q / q.sum()
    worse_p, worse_q = p.copy(), q.copy()
    most = int(np.argmax(p - math.exp(epsilon) * q))
    worse_p[most] += off
    worse_p[int(np.argmax(q))] -= off
    worse_q[most] -= min(off, q[most])
    worse_q[int(np.argmax(q))] += min(off, q[most])
    added = delta_of_distance(off, draws=1, epsilon=epsilon)
    assert delta(worse_p, worse_q) <= delta(p, q) + added
    assert added == pytest.approx(off * (1 + math.exp(epsilon)))
    assert delta_of_distance(off, draws=7, epsilon=epsilon) == pytest.approx(7 * added)


def test_drawn_on_the_cpu_and_handed_over() -> None:
    assert SecretNoise().discrete_gaussian((3,), 2.0, device=torch.device("cpu")).device.type == "cpu"
