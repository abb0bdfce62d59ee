"""How alike an original and its reconstruction are: PSNR, SSIM, and whether it can be recognised among others.

SSIM is that of Wang, Bovik, Sheikh & Simoncelli (2004, "Image quality assessment: from error visibility to structural
similarity"), with the window that scikit-image has by default: means over squares of 7 x 7 pixels, and the sample
covariance. Small images have a smaller window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Images = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float64]

BEST_PSNR: Final = 60.0
"""Decibels above which two images count as the same: a mean would else be that of one perfect copy."""

_WINDOW: Final = 7
_K1, _K2 = 0.01, 0.03


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs:
    """Originals beside what was taken for them, and how alike they are.

    Attributes:
        order: of each original, which reconstruction is held against it.
        psnr: decibels, (n,), at most `BEST_PSNR`.
        ssim: (n,), from -1 to 1.
    """

    order: npt.NDArray[np.int64]
    psnr: Floats
    ssim: Floats


def psnr(one: Images, other: Images) -> float:
    """Peak signal-to-noise ratio in decibels, of images whose values go from 0 to 1; infinite of equal ones."""
    error = float(np.mean((one - other) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def ssim(one: Images, other: Images) -> float:
    """Mean structural similarity of two images (channels, height, width) whose values go from 0 to 1.

    Raises:
        ValueError: their shapes differ, or a side is below 3 pixels.
    """
    if one.shape != other.shape or one.ndim != 3 or min(one.shape[1:]) < 3:
        raise ValueError("SSIM takes two images (channels, height, width) of the same shape, from 3 x 3 pixels")
    least = min(_WINDOW, *one.shape[1:])
    side = least - (least + 1) % 2  # odd
    return float(np.mean([_of_channel(a, b, side) for a, b in zip(one, other, strict=True)]))


def _of_channel(a: Images, b: Images, side: int) -> float:
    n = side * side
    windows = [np.lib.stride_tricks.sliding_window_view(image, (side, side)).reshape(-1, n) for image in (a, b)]
    x, y = (window - window.mean(axis=1, keepdims=True) for window in windows)
    mean_x, mean_y = (window.mean(axis=1) for window in windows)
    var_x, var_y, both = ((p * q).sum(axis=1) / (n - 1) for p, q in ((x, x), (y, y), (x, y)))
    c1, c2 = _K1**2, _K2**2
    top = (2 * mean_x * mean_y + c1) * (2 * both + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(top / bottom))


def matched(originals: Images, found: Images) -> Pairs:
    """Give each original of a batch one reconstruction, so that the sum of squared errors is least.

    A gradient doesn't tell in which order its records were. Whoever scores an attack knows, and so is kind to it.

    Args:
        originals: (n, channels, height, width), from 0 to 1.
        found: (m, channels, height, width), m at least n.
    """
    from scipy.optimize import linear_sum_assignment

    rows, others = originals.reshape(len(originals), -1), found.reshape(len(found), -1)
    _, order = linear_sum_assignment(_squared_distances(rows, others))
    pairs = [(one, found[other]) for one, other in zip(originals, order, strict=True)]
    return Pairs(
        order=np.asarray(order, dtype=np.int64),
        psnr=np.array([min(BEST_PSNR, psnr(*pair)) for pair in pairs]),
        ssim=np.array([ssim(*pair) for pair in pairs]),
    )


def recognised(found: Images, originals: Images, others: Images) -> npt.NDArray[np.bool_]:
    """Whether each reconstruction is nearer to its original than to every other image.

    Args:
        found: (n, ...), of each original its reconstruction.
        originals: (n, ...).
        others: (m, ...), none of the originals among them; the more, the harder.
    """
    own = ((found - originals) ** 2).reshape(len(found), -1).sum(axis=1)
    if not len(others):
        return np.ones(len(found), dtype=np.bool_)
    strangers = _squared_distances(found.reshape(len(found), -1), others.reshape(len(others), -1))
    nearer: npt.NDArray[np.bool_] = own < strangers.min(axis=1)
    return nearer


def _squared_distances(rows: Floats, others: Floats) -> Floats:
    """(n, m), by differences: the quick formula by products isn't exact where two are nearly equal."""
    return np.stack([((others - row) ** 2).sum(axis=1) for row in rows])
