"""From an update to what a client puts into a secure sum, and from the sum back to the mean update.

Of a client's whole update (`encode`), the way of Kairouz, Liu & Steinke 2021 (arXiv 2102.06387, algorithms 1 and 2):
clip, turn (if asked), scale to the grid, round at random within a norm, add a share of noise, and take it all modulo
the size of a ring. Everything is a pure function of the update and of one source of randomness; the grid
(`privacy.sum_grid`) says why the sum's sensitivity is what it is, for every outcome. Of a client's sum of clipped
gradients (`encode_gradients`): scale to the grid, clamp, round, add a share of noise; `privacy.example_sum_grid` says
why.

A sum never wraps: whatever the rounding and the noise, a coordinate is at most `grid.bound`, and the ring is wide
enough for that of all clients. So the probability of a wrap is exactly 0, and what the noise's bound takes away from
its tails is part of a distance that the accountant takes out of delta (rule 9).
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from privacy.example_sum_grid import ExampleSumGrid
from privacy.noise import NoiseSource
from privacy.sum_grid import MOST_RETRIES, SumGrid, padded_size

Words = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]

_SIGNS = b"veil rotation 1"


def encode(
    update: npt.NDArray[np.float32],
    grid: SumGrid,
    *,
    bits: Literal[32, 64],
    noise: NoiseSource,
    rotation: bytes | None = None,
) -> Words:
    """What a client puts into the sum: whole numbers with its share of noise, modulo 2^bits.

    An update that is not finite counts as zeros (rule 5): the reply has the same form, and the noise is added all the
    same. So is the share of a client that has no update to give.

    Args:
        update: the change of all trained values, flat.
        grid: of the plan.
        bits: width of the ring; `grid.bits(cohort)`.
        noise: source of rounding and noise; the client's own.
        rotation: a public seed, to turn the update before it is rounded; None: not turned.

    Raises:
        ValueError: the update is not flat.
    """
    if update.ndim != 1:
        raise ValueError(f"an update to be added up is flat, got {update.ndim} axes")
    return _with_noise(rounded(_in_steps(update, grid, rotation), grid.steps, noise), grid, bits, noise)


def encode_gradients(
    total: npt.NDArray[np.float64], grid: ExampleSumGrid, *, bits: Literal[32, 64], noise: NoiseSource
) -> Words:
    """What a client puts into the sum of all clients' clipped gradients, with its share of noise, modulo 2^bits.

    Args:
        total: the client's own sum, flat; finite, for what isn't finite was left out of it.
        grid: of the plan.
        bits: width of the ring; `grid.bits(cohort)`.
        noise: the client's own.

    Raises:
        ValueError: the sum is not flat, of another length than the grid's, or not finite.
    """
    if total.shape != (grid.dimension,) or not np.isfinite(total).all():
        raise ValueError(f"a sum of gradients to be added up has {grid.dimension} finite values, got {total.shape}")
    steps = np.rint(np.clip(total / grid.step, -grid.most, grid.most))
    return _with_noise(steps.astype(np.int64), grid, bits, noise)


def decode(
    total: Words, grid: SumGrid | ExampleSumGrid, *, survivors: int, size: int, rotation: bytes | None = None
) -> npt.NDArray[np.float32]:
    """The mean update that a sum stands for.

    Args:
        total: the sum, modulo 2^bits.
        grid: of the plan.
        survivors: clients in the sum, public.
        size: trained values.
        rotation: as for `encode`.

    Raises:
        ValueError: the sum has another length, or no survivors.
    """
    if survivors < 1:
        raise ValueError("a sum over nobody has no mean")
    if total.shape != (size if rotation is None else padded_size(size),):
        raise ValueError(f"a sum of {total.shape} values is none of {size}")
    lifted = total.view(np.int32 if total.dtype == np.uint32 else np.int64)
    values = lifted.astype(np.float64)
    values *= grid.step / survivors
    return (values if rotation is None else turned_back(values, rotation)[:size]).astype(np.float32)


def rounded(vector: npt.NDArray[np.float64], most: int, noise: NoiseSource) -> npt.NDArray[np.int64]:
    """A vector rounded to whole numbers at random, each up or down with its own mean as it was, no longer than `most`.

    One that is longer is drawn again; after `MOST_RETRIES`, or where even the nearest to zero were longer, coordinates
    are rounded towards zero, which makes none longer. The norm is computed in whole numbers, without error.

    Args:
        vector: no longer than `most`.
        most: at most 2^30.
        noise: where the coins come from.

    Raises:
        ValueError: the vector is longer than `most`.
    """
    below = np.floor(vector)
    chance = vector - below
    floor = below.astype(np.int64)
    for _ in range(MOST_RETRIES):
        found = floor + (noise.uniform(len(vector)) < chance)
        if _square(found) <= most**2:
            return found
    towards_zero = np.trunc(vector).astype(np.int64)
    if _square(towards_zero) > most**2:
        raise ValueError("the vector is longer than its rounding may be")
    return towards_zero


def turned(vector: npt.NDArray[np.float64], seed: bytes) -> npt.NDArray[np.float64]:
    """A vector padded to a power of two and turned: random signs, then Hadamard's transform; as long as before.

    Every coordinate then has about an equal part of the length, whatever the vector.

    Args:
        vector: flat.
        seed: public; the same for all clients of a sum.
    """
    padded = np.zeros(padded_size(len(vector)))
    padded[: len(vector)] = vector
    return _hadamard(padded * _signs(seed, len(padded)))


def turned_back(vector: npt.NDArray[np.float64], seed: bytes) -> npt.NDArray[np.float64]:
    """The inverse of `turned`, still padded."""
    return _hadamard(vector) * _signs(seed, len(vector))


def _with_noise(
    whole: npt.NDArray[np.int64], grid: SumGrid | ExampleSumGrid, bits: Literal[32, 64], noise: NoiseSource
) -> Words:
    """Whole numbers with a share of noise, in the ring; the noise is drawn whatever they are."""
    draw = {
        "rounded-gaussian": noise.grid_normal,
        "discrete-gaussian": noise.discrete_gaussian,
        "skellam": noise.skellam,
    }[grid.noise]
    whole += np.clip(draw(whole.shape, grid.noise_share).numpy(), -grid.largest, grid.largest)
    assert np.abs(whole).max(initial=0) <= grid.bound
    # From a negative number to a ring's element: its last bits (two's complement).
    return whole.astype(np.uint32) if bits == 32 else whole.astype(np.uint64)


def _in_steps(update: npt.NDArray[np.float32], grid: SumGrid, rotation: bytes | None) -> npt.NDArray[np.float64]:
    """The update in steps, clipped and turned; zeros if it is not finite."""
    vector = update.astype(np.float64)
    vector /= grid.step
    norm = math.sqrt(float(vector @ vector))  # in float64 squares of float32 in steps neither over- nor underflow
    if not math.isfinite(norm):
        vector = np.zeros_like(vector)
    elif norm > grid.norm:
        vector *= grid.norm / norm
    return vector if rotation is None else turned(vector, rotation)


def _square(whole: npt.NDArray[np.int64]) -> int:
    return int(whole @ whole)


def _signs(seed: bytes, n: int) -> npt.NDArray[np.float64]:
    """Signs that everybody can compute from a public seed."""
    bits = np.frombuffer(hashlib.shake_256(_SIGNS + seed).digest((n + 7) // 8), dtype=np.uint8)
    return 1.0 - 2.0 * np.unpackbits(bits, count=n).astype(np.float64)


def _hadamard(vector: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hadamard's transform of a power of two of values, scaled so that it is its own inverse and keeps lengths."""
    n, width = len(vector), 1
    while width < n:
        pairs = vector.reshape(-1, 2, width)
        vector = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1).reshape(-1)
        width *= 2
    scaled: npt.NDArray[np.float64] = vector / math.sqrt(n)
    return scaled
