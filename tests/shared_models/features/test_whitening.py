"""Normalisation of coefficients, and whitening by public moments."""

from __future__ import annotations

import numpy as np
import torch

from shared_models.features.normalise import normalised
from shared_models.features.whitening import POWER, Moments, whitener


def rows(n: int = 500, d: int = 12, seed: int = 1) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return (generator.standard_normal((n, d)) @ generator.standard_normal((d, d)) + 3).astype(np.float32)


def test_moments_in_parts_are_those_of_the_whole() -> None:
    x = rows()
    found = Moments(12)
    for part in np.array_split(x, 7):
        found.add(part)
    assert np.allclose(found.mean(), x.mean(axis=0, dtype=np.float64), atol=1e-5)
    assert np.allclose(found.covariance(), np.cov(x, rowvar=False, bias=True), rtol=1e-4, atol=1e-4)


def test_long_directions_are_made_shorter_and_short_ones_are_not_blown_up() -> None:
    values = np.array([1000.0, 10.0, 0.0])
    matrix = whitener(np.diag(values))
    assert np.allclose(np.diag(matrix), (values + 0.1 * values.mean()) ** POWER, rtol=1e-5)
    assert np.allclose(matrix, np.diag(np.diag(matrix)), atol=1e-6)


def test_it_is_symmetric_and_knows_no_signs_of_eigenvectors() -> None:
    covariance = np.cov(rows(), rowvar=False)
    matrix = whitener(covariance.copy())
    assert np.allclose(matrix, matrix.T, atol=1e-6)
    turned = np.linalg.qr(np.random.default_rng(3).standard_normal((12, 12)))[0]
    assert np.allclose(turned @ matrix @ turned.T, whitener(turned @ covariance @ turned.T), atol=1e-4)


def test_fewer_images_than_features_do_no_harm() -> None:
    found = Moments(12)
    found.add(rows(n=4))
    assert np.isfinite(whitener(found.covariance())).all()


def test_each_group_of_three_maps_has_zero_mean_and_unit_variance() -> None:
    x = torch.rand(4, 81, 7, 7, generator=torch.Generator().manual_seed(1))
    found = normalised(x).reshape(4, 27, -1)
    assert torch.allclose(found.mean(dim=2), torch.zeros(4, 27), atol=1e-5)
    assert torch.allclose(found.var(dim=2, correction=0), torch.ones(4, 27), atol=1e-3)


def test_normalisation_leaves_what_it_is_given_and_survives_zeros() -> None:
    x = torch.zeros(1, 81, 7, 7)
    assert bool(torch.isfinite(normalised(x)).all())
    assert float(x.abs().max()) == 0
