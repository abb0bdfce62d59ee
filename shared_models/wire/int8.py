"""Eight bits a value: 255 levels for each array, rounded at random so that the mean is right.

QSGD (Alistarh et al. 2017, arXiv 1610.02132) in its variant by the largest value: with scale s = max |x| / 127, x
becomes the level below or above x / s, the upper one with the chance that makes the level's mean x / s. So the decoded
value's mean is x (but for float32's own rounding), its error is below s, and zero stays zero.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from shared_models.parameters import DamagedError, Layout, LayoutError, Parameters, in_order, read_array

# All levels after one another in the layout's order, and a scale for each array. One array each: Flower's encoding
# spends 128 bytes on an array's head, which many small arrays would not repay.
NAMES: Final = ("levels", "scales")
_LARGEST: Final = 127
_AT_ONCE: Final = 2**20  # values: what is computed of each takes a few tens of bytes


def encode(update: Parameters, layout: Layout, seed: int) -> ArrayRecord:
    """Round to levels; the draws follow from the seed. An array that is not finite has the scale NaN, which shows.

    Raises:
        LayoutError: names or shapes differ from the layout.
    """
    generator = np.random.default_rng(seed)
    levels, scales = np.zeros(layout.size, np.int8), np.zeros(len(layout.entries), np.float32)
    place = 0
    for number, (_, value) in enumerate(in_order(update, layout)):
        scales[number] = scale = _scale(value)
        for start in range(0, value.size if scale > 0 else 0, _AT_ONCE):
            part = value.ravel()[start : start + _AT_ONCE]
            levels[place + start : place + start + part.size] = _levels(part, scale, generator)
        place += value.size
    return ArrayRecord({"levels": Array(levels), "scales": Array(scales)})


def decode(record: ArrayRecord, layout: Layout) -> Parameters:
    """Levels times scales.

    Raises:
        LayoutError: names, shapes or types differ, or the bytes are damaged.
        DamagedError: a scale below zero, or a level that rounding doesn't give.
    """
    if tuple(record.keys()) != NAMES:
        raise LayoutError("the arrays' names are not levels, scales")
    levels = read_array(record["levels"], "levels", (layout.size,), "int8")
    scales = read_array(record["scales"], "scales", (len(layout.entries),), "float32")
    if (scales < 0).any() or (levels < -_LARGEST).any():
        raise DamagedError("a scale below zero, or a level below -127")
    found: Parameters = {}
    place = 0
    for (name, shape), scale in zip(layout.entries, scales, strict=True):
        size = int(np.prod(shape, dtype=np.int64))
        with np.errstate(over="ignore", invalid="ignore"):  # the server leaves out what is not finite
            found[name] = (levels[place : place + size].astype(np.float32) * scale).reshape(shape)
        place += size
    return found


def _scale(value: npt.NDArray[np.float32]) -> np.float32:
    """Width of a level: the least float32 of which 127 reach every value; NaN if one is not finite."""
    largest = np.max(np.abs(value), initial=np.float32(0))
    if not np.isfinite(largest):
        return np.float32(np.nan)
    scale = np.float32(float(largest) / _LARGEST)
    if float(scale) * _LARGEST < float(largest):
        scale = np.nextafter(scale, np.float32(np.inf))
    return scale


def _levels(value: npt.NDArray[np.float32], scale: np.float32, generator: np.random.Generator) -> npt.NDArray[np.int8]:
    exact = value.astype(np.float64) / float(scale)
    below = np.floor(exact)
    # A comparison, not floor(exact + draw): that sum would be rounded, and 127 plus a draw near 1 would be 128.
    return np.asarray(below + (generator.random(value.size) < exact - below), dtype=np.int8)
