"""Means, deviations and quantiles of noisy counts: NumPy's of the records, within the error bars that are told."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from privacy.noise import SecretNoise
from shared_models.histograms import Histogram
from shared_models.summary_statistics import ColumnSummary, Statistics, class_weights, summarised

EDGES = tuple(float(edge) for edge in np.linspace(0, 10, 21))
NUMBER = Histogram(column="v", kind="number", names=(*(f"b{i}" for i in range(20)), "(missing)"), edges=EDGES, start=0)
CLASSES = Histogram(column="y", kind="classes", names=("a", "b", "c"), edges=(), start=21)


def of(values: np.ndarray, *, noise: float = 0.0, drawn: np.ndarray | None = None, missing: int = 0) -> Statistics:
    counts = np.append(np.histogram(values, EDGES)[0], missing).astype(np.int64)
    if drawn is not None:
        counts = counts + drawn
    return summarised([NUMBER], counts, noise=noise, plan="0" * 64, clients=1)


def skewed(n: int, seed: int) -> np.ndarray:
    return np.clip(np.random.default_rng(seed).gamma(2.0, 1.3, n), 0, 10)


def test_without_noise_bins_alone_keep_figures_from_those_of_the_records() -> None:
    values = skewed(20_000, 1)
    found = of(values, missing=7)
    (column,) = found.columns
    number = column.number
    assert number is not None
    assert (column.total, column.missing, found.records) == (20_007, 7, 20_007)
    assert number.mean_noise == number.deviation_noise == 0
    assert number.mean_bin == pytest.approx(0.25)
    assert abs(number.mean - values.mean()) < 0.02  # skewed, but most errors within bins cancel
    assert number.deviation == pytest.approx(values.std(), rel=0.02)
    for one in number.quantiles:
        truth = np.quantile(values, one.part)
        assert one.low <= truth <= one.high
        assert one.high - one.low <= 1.0 + 1e-9
        assert one.value == pytest.approx(truth, abs=0.05)


def test_error_bars_hold_what_they_promise() -> None:
    """2,000 draws of real noise. Each two-sided 95 % interval of the noise alone may miss at most so often that a true
    rate of 5 % would do so with a chance below 1e-7 (binomial tail); false alarms: 3 x 1e-7 in all."""
    values, sigma, n = skewed(3_000, 2), 25.0, 2_000
    still = of(values).columns[0].number
    assert still is not None
    noise = SecretNoise()
    missed = dict.fromkeys(("mean", "deviation", "median"), 0)
    means = []
    for _ in range(n):
        found = of(values, noise=sigma, drawn=noise.grid_normal((21,), sigma).numpy())
        number = found.columns[0].number
        assert number is not None
        means.append(number.mean)
        missed["mean"] += abs(number.mean - still.mean) > 1.96 * number.mean_noise
        missed["deviation"] += abs(number.deviation - still.deviation) > 1.96 * number.deviation_noise
        median = next(one for one in number.quantiles if one.part == 0.5)
        missed["median"] += not median.low <= np.median(values) <= median.high
    most = int(binom.isf(1e-7, n, 0.055))  # 5 %, and a tenth of that for the delta method's higher terms
    assert all(times <= most for times in missed.values()), (missed, most)
    # And the bars are not wider than they need be: the deviation over the draws is what is told.
    assert np.std(means) == pytest.approx(still_noise(still.mean, values, sigma), rel=0.12)


def still_noise(mean: float, values: np.ndarray, sigma: float) -> float:
    """The same by the formula of a ratio, written anew."""
    middles = (np.array(EDGES[1:]) + np.array(EDGES[:-1])) / 2
    return float(sigma * math.sqrt(((middles - mean) ** 2).sum()) / len(values))


def test_negative_counts_are_taken_as_they_are() -> None:
    drawn = np.full(21, -40, np.int64)
    found = of(skewed(4_000, 3), noise=30.0, drawn=drawn)
    (column,) = found.columns
    assert min(column.counts) < 0
    number = column.number
    assert number is not None
    values = [one.value for one in number.quantiles]
    assert values == sorted(values)
    assert all(0 <= one.low <= one.value <= one.high <= 10 for one in number.quantiles)
    assert 0 <= number.mean <= 10
    assert number.deviation >= 0


@pytest.mark.parametrize("counts", [np.zeros(21), np.full(21, -100), np.array([*[0] * 20, 5_000]), np.full(21, 10)])
def test_what_noise_drowns_is_not_told(counts: np.ndarray) -> None:
    """All-missing columns and empty clients among them."""
    found = summarised([NUMBER], counts.astype(np.int64), noise=30.0, plan="0" * 64, clients=1)
    assert found.columns[0].number is None


@pytest.mark.parametrize("seed", range(20))
def test_any_noise_at_all_makes_figures_that_are_finite_and_in_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    counts = generator.integers(-1_000, 1_000, 21)
    counts[generator.integers(20)] += 50_000
    number = summarised([NUMBER], counts, noise=100.0, plan="0" * 64, clients=3).columns[0].number
    assert number is not None
    assert all(map(math.isfinite, (number.mean, number.mean_bar, number.deviation, number.deviation_noise)))
    assert all(0 <= one.low <= one.value <= one.high <= 10 for one in number.quantiles)
    assert [one.value for one in number.quantiles] == sorted(one.value for one in number.quantiles)


def test_the_number_of_records_is_that_of_all_columns_together() -> None:
    """The deviation that is told, against 4,000 draws: within 6 standard errors of it, so a false alarm below 1e-8."""
    values, noise, sigma = skewed(500, 5), SecretNoise(), 12.0
    exact = np.concatenate([np.append(np.histogram(values, EDGES)[0], 0), [300, 150, 50]])
    drawn = noise.grid_normal((4_000, 24), sigma).numpy()
    found = [summarised([NUMBER, CLASSES], exact + one, noise=sigma, plan="0" * 64, clients=1) for one in drawn]
    estimates = np.array([one.records for one in found])
    told = found[0].records_noise
    assert abs(estimates.mean() - 500) < 6 * told / math.sqrt(4_000)
    assert abs(estimates.std() / told - 1) < 6 / math.sqrt(2 * 4_000)


def classes(counts: tuple[int, ...]) -> ColumnSummary:
    return summarised([CLASSES], np.array([*[0] * 21, *counts]), noise=0.0, plan="0" * 64, clients=1).columns[0]


def test_class_weights_make_classes_count_alike() -> None:
    weights = class_weights(classes((600, 300, 100)), 1.0)
    assert [count * weight for count, weight in zip((600, 300, 100), weights, strict=True)] == pytest.approx(
        [1000 / 3] * 3, rel=1e-5
    )


def test_a_class_that_noise_hides_gets_no_immense_weight() -> None:
    assert class_weights(classes((900, 100, -8)), 10.0)[2] == pytest.approx((900 + 100 + 20) / (3 * 20), rel=1e-5)
    with pytest.raises(ValueError, match="noise drowns"):
        class_weights(classes((10, 5, 1)), 10.0)
    with pytest.raises(ValueError, match="not the column of the classes"):
        class_weights(of(skewed(100, 1)).columns[0], 1.0)
