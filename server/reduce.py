"""Weighted mean of updates, folded in as they arrive, the same bit for bit in any order.

Floating-point addition depends on the order of its terms. Here every term is written as a fixed-point number of 112
bits (two integers: whole multiples of 2^-12, and of 2^-60 below), and integers add up the same in any order. A
float32 of magnitude 2^-36 or more, times its weight, is held exactly; below that a term is off by at most 2^-61. The
mean is rounded once, to float32. Memory does not grow with the number of updates: it is the two integers of each
value, and what a few thousand values take on their way there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_HIGH = 2.0**12
_LOW = 2.0**48  # low units in a high one
_CARRY_EVERY = 2**14  # a low part is below 2^48 a term, so 2^14 terms stay below 2^62
_LIMIT = 2.0**50  # what the largest values of all terms may add up to, so that the high part never overflows
_CHUNK = 1 << 14  # values at once: what they take on their way stays in the processor's cache
_LARGEST = 2.0**40  # a value times its weight; far below the limit, so that no update leaves others without room


class ReduceError(ValueError):
    """A value that can't take part in a mean: not finite, above 2^40, or so large that the sum could pass 2^50."""


class ExactMean:
    """Weighted mean of named arrays: `add` updates, `merge` partial means, ask for the `result`."""

    def __init__(self) -> None:
        self._high: dict[str, npt.NDArray[np.int64]] = {}
        self._low: dict[str, npt.NDArray[np.int64]] = {}
        self._weight = 0
        self._count = 0
        self._bound = 0.0  # no value of the sum is larger than this
        self._pending = 0

    @property
    def count(self) -> int:
        """Number of updates folded in."""
        return self._count

    def add(self, update: Mapping[str, npt.NDArray[np.float32]], weight: int = 1) -> None:
        """Fold in one update. Nothing is changed if the update is refused.

        Raises:
            ReduceError: the weight isn't a whole number from 1 to 2^29, or a value can't be held.
            ValueError: names or shapes differ from the first update's.
        """
        if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= 2**29:
            raise ReduceError(f"weight {weight} is not a whole number from 1 to 2^29")
        self._check_form(update)
        largest = 0.0
        for name, value in update.items():
            here = float(max(np.max(value, initial=0.0), -np.min(value, initial=0.0))) * weight
            if not (here <= _LARGEST and self._bound + here <= _LIMIT):  # also true of NaN
                raise ReduceError(f"{name}: not finite, or too large to average")
            largest = max(largest, here)
        for name, value in update.items():
            if name not in self._high:
                self._high[name], self._low[name] = (np.zeros(value.shape, np.int64) for _ in range(2))
            for part, high, low in _chunks(value, self._high[name], self._low[name]):
                term = part.astype(np.float64)
                term *= weight * _HIGH  # exact: 24 + 29 bits, times a power of two
                whole = np.floor(term)
                np.add(high, whole.astype(np.int64), out=high)
                term -= whole
                term *= _LOW
                np.add(low, np.rint(term, out=term).astype(np.int64), out=low)
        self._bound += largest
        self._weight += weight
        self._count += 1
        self._pending += 1
        if self._pending >= _CARRY_EVERY:
            self._carry()

    def merge(self, other: Self) -> None:
        """Fold in another partial mean, which keeps its value.

        Raises:
            ReduceError: the two together could pass what can be held.
            ValueError: names or shapes of the two differ.
        """
        if other._count:
            self._check_form(other._high)
        if self._bound + other._bound > _LIMIT:
            raise ReduceError("the sum of two partial means is too large to average")
        self._carry()  # the other's low part is below 2^62, so that the sum still fits
        for name, high in other._high.items():
            if name in self._high:
                self._high[name] += high
                self._low[name] += other._low[name]
            else:
                self._high[name] = high.copy()
                self._low[name] = other._low[name].copy()
        self._bound += other._bound
        self._weight += other._weight
        self._count += other._count
        self._carry()

    def result(self) -> dict[str, npt.NDArray[np.float32]]:
        """The mean, rounded to the nearest float32, to the last bit while the weights add up to less than 2^28.

        Raises:
            ValueError: nothing was added.
        """
        if self._count == 0:
            raise ValueError("the mean of no updates")
        self._carry()
        found = {name: np.empty(high.shape, np.float32) for name, high in self._high.items()}
        for name, mean in found.items():
            for high, low, part in _chunks(self._high[name], self._low[name], mean):
                part[...] = _nearest(high, low, self._weight)
        return found

    def _check_form(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if self._count and (
            arrays.keys() != self._high.keys() or any(arrays[k].shape != v.shape for k, v in self._high.items())
        ):
            raise ValueError("the update's names or shapes differ from those of the first one")

    def _carry(self) -> None:
        """Bring every low part into [0, one high unit): the representation of a sum is then unique."""
        for name, all_of_it in self._low.items():
            for high, low in _chunks(self._high[name], all_of_it):
                carried = low >> 48
                np.add(high, carried, out=high)
                np.subtract(low, carried << 48, out=low)
        self._pending = 1


def _chunks(*arrays: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Some values at a time of arrays of one shape: views, flat."""
    rows = [array.reshape(-1) for array in arrays]
    for start in range(0, rows[0].size, _CHUNK):
        yield tuple(row[start : start + _CHUNK] for row in rows)


def _nearest(high: npt.NDArray[np.int64], low: npt.NDArray[np.int64], weight: int) -> npt.NDArray[np.float32]:
    """(high + low / 2^48) / 2^12 / weight as float32, rounded once, ties to even.

    A quotient that was rounded to float64 may lie on the wrong side of the middle of two float32s, or right on it.
    The integers decide: they are compared with the middle, which is exact (25 bits, times 28 of the weight).
    """
    quotient = (high + low / _LOW) / _HIGH / weight
    found = quotient.astype(np.float32)
    other = np.nextafter(found, np.where(quotient > found, np.inf, -np.inf).astype(np.float32))
    middle = (found.astype(np.float64) + other) / 2
    at_middle = middle * weight * _HIGH
    middle_high = np.rint(at_middle)  # not floor: a small negative number less its floor would be rounded
    middle_low = (at_middle - middle_high) * _LOW
    # Two high units apart settle it; nearer, the difference in low units is one exact integer less one exact float,
    # and a rounded difference has the right sign.
    beyond = np.clip(high - middle_high.astype(np.int64), -2, 2)
    difference = (low + beyond * (1 << 48)).astype(np.float64) - middle_low
    tie = middle.astype(np.float32)
    larger, smaller = np.maximum(found, other), np.minimum(found, other)
    return np.where(difference > 0, larger, np.where(difference < 0, smaller, tie))
