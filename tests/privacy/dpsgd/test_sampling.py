"""Rule 1: each record enters each batch by a coin of its own, at a public rate."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from privacy.dpsgd.sampling import poisson_batch
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise

FALSE_ALARM = 1e-6
BATCHES, RECORDS, RATE = 20_000, 12, 0.3


@pytest.fixture(scope="module", params=["secret", "reproducible"])
def inclusion(request: pytest.FixtureRequest) -> np.ndarray:
    """Who was in which batch, of shape (batches, records)."""
    source: NoiseSource = SecretNoise() if request.param == "secret" else ReproducibleNoise(b"sampling")
    chosen = np.zeros((BATCHES, RECORDS))
    for batch in chosen:
        batch[poisson_batch(RECORDS, RATE, source).numpy()] = 1
    return chosen


def test_every_record_enters_at_the_public_rate(inclusion: np.ndarray) -> None:
    z = (inclusion.sum(axis=0) - BATCHES * RATE) / math.sqrt(BATCHES * RATE * (1 - RATE))
    assert stats.chi2.sf(np.sum(z**2), RECORDS) > FALSE_ALARM


def test_records_enter_independently(inclusion: np.ndarray) -> None:
    pairs = np.corrcoef(inclusion.T)[np.triu_indices(RECORDS, 1)]
    assert np.abs(pairs).max() < stats.norm.isf(FALSE_ALARM / 2 / len(pairs)) / math.sqrt(BATCHES)


def test_batches_are_independent_of_each_other(inclusion: np.ndarray) -> None:
    centred = (inclusion - RATE) / math.sqrt(RATE * (1 - RATE))
    z = np.sum(centred[1:] * centred[:-1]) / math.sqrt((BATCHES - 1) * RECORDS)
    assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)


def test_the_size_of_a_batch_is_binomial(inclusion: np.ndarray) -> None:
    sizes = inclusion.sum(axis=1).astype(int)
    expected = stats.binom.pmf(np.arange(RECORDS + 1), RECORDS, RATE) * BATCHES
    rare = expected < 20
    observed = np.bincount(sizes, minlength=RECORDS + 1)
    observed = np.append(observed[~rare], observed[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


def test_a_batch_may_be_empty() -> None:
    source = ReproducibleNoise(b"empty")
    sizes = [len(poisson_batch(2, 0.2, source)) for _ in range(50)]
    assert 0 in sizes
    assert max(sizes) > 0
    assert poisson_batch(0, 0.2, source).shape == (0,)


def test_a_batch_is_indices_in_order() -> None:
    batch = poisson_batch(50_000, 0.1, SecretNoise())
    assert batch.dtype == torch.int64
    assert (batch.diff() > 0).all()
    assert batch.max() < 50_000
    assert torch.equal(poisson_batch(30_000, 1, SecretNoise()), torch.arange(30_000))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_the_rate_is_a_probability(rate: float) -> None:
    with pytest.raises(ValueError, match="sample_rate"):
        poisson_batch(10, rate, SecretNoise())


def test_there_is_no_negative_number_of_records() -> None:
    with pytest.raises(ValueError, match="-1 records"):
        poisson_batch(-1, 0.5, SecretNoise())
