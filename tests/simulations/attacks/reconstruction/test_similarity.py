"""Scores of likeness: closed forms, a plain loop, and figures of scikit-image."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from simulations.attacks.reconstruction.similarity import BEST_PSNR, matched, psnr, recognised, ssim

C1, C2 = 0.01**2, 0.03**2


def images(count: int, side: int = 8, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.random.default_rng(seed).random((count, 1, side, side))


def test_psnr_of_a_constant_error_is_its_logarithm() -> None:
    black = np.zeros((1, 8, 8))
    assert psnr(black, black + 0.1) == pytest.approx(20.0)
    assert psnr(black, black + 1.0) == pytest.approx(0.0)
    assert psnr(black, black) == math.inf


def test_ssim_of_flat_images_is_that_of_their_brightness() -> None:
    one, other = np.full((1, 8, 8), 0.2), np.full((1, 8, 8), 0.7)
    assert ssim(one, other) == pytest.approx((2 * 0.2 * 0.7 + C1) / (0.2**2 + 0.7**2 + C1))
    assert ssim(one, one) == pytest.approx(1.0)


def test_ssim_of_a_negative_is_negative() -> None:
    # Windows of the whole image: structure is -1, brightness as of its means.
    image = images(1, side=7)[0]
    mean, var = image.mean(), image.var(ddof=1)
    brightness = (2 * mean * (1 - mean) + C1) / (mean**2 + (1 - mean) ** 2 + C1)
    assert ssim(image, 1 - image) == pytest.approx(brightness * (-2 * var + C2) / (2 * var + C2))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 11, 9), (1, 28, 28)])
def test_ssim_is_that_of_a_loop_over_windows(shape: tuple[int, int, int]) -> None:
    one, other = np.random.default_rng(1).random((2, *shape))
    found = []
    for channel, top, left in itertools.product(range(shape[0]), range(shape[1] - 6), range(shape[2] - 6)):
        x, y = (image[channel, top : top + 7, left : left + 7].ravel() for image in (one, other))
        (vx, both), (_, vy) = np.cov(x, y)
        found.append(
            (2 * x.mean() * y.mean() + C1) * (2 * both + C2) / ((x.mean() ** 2 + y.mean() ** 2 + C1) * (vx + vy + C2))
        )
    assert ssim(one, other) == pytest.approx(np.mean(found))


def test_ssim_is_scikit_images() -> None:
    # structural_similarity(a, b, data_range=1) of scikit-image 0.26.0, of these very images
    rows, columns = np.mgrid[0:16, 0:16] / 15
    a, b = (rows + columns) / 2, np.clip(rows * columns + 0.1 * np.sin(20 * rows), 0, 1)
    assert ssim(a[None], b[None]) == pytest.approx(0.5561659731908767, abs=1e-9)


def test_ssim_refuses_what_it_has_no_window_for() -> None:
    with pytest.raises(ValueError, match="same shape"):
        ssim(np.zeros((1, 8, 8)), np.zeros((1, 8, 9)))
    with pytest.raises(ValueError, match="3 x 3"):
        ssim(np.zeros((1, 2, 8)), np.zeros((1, 2, 8)))


def test_a_batch_is_matched_by_the_assignment_with_the_least_error() -> None:
    originals = images(5)
    found = originals[[3, 0, 4, 1, 2]] + 0.05 * images(5, seed=1)
    pairs = matched(originals, found)
    cost = {
        order: sum(((originals[i] - found[j]) ** 2).sum() for i, j in enumerate(order))
        for order in itertools.permutations(range(5))
    }
    assert tuple(pairs.order) == min(cost, key=cost.__getitem__) == (1, 3, 4, 0, 2)
    assert pairs.psnr[0] == pytest.approx(psnr(originals[0], found[1]))
    assert (matched(originals, originals).psnr == BEST_PSNR).all()
    assert len(set(matched(originals, np.repeat(originals[:1], 5, axis=0)).order)) == 5  # each is given once


def test_an_image_is_recognised_if_no_other_is_nearer() -> None:
    originals, others = images(3), images(50, seed=1)
    assert recognised(originals + 0.01, originals, others).all()
    assert not recognised(others[:3], originals, others).any()
    assert recognised(originals, originals, others[:0]).all()
