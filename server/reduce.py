"""Weighted mean of updates, folded in as they arrive, the same bit for bit in any order.

Floating-point addition depends on the order of its terms. Here every term is written as a whole number of units of
2^-40, and integers add up the same in any order. Memory does not grow with the number of updates: it is eight bytes a
value, and what a few thousand values take on their way there.

Why 2^-40. A term is a float32 times a weight up to 2^29, at most 2^40 in all; it is rounded to the nearest unit once,
by itself, so that no other term has a say in it. A value of magnitude 2^-17 (8e-6) or more has no bits below the unit:
it is held exactly, and so is the sum of such values, whatever cancels. A smaller one is off by half a unit, 2^-41, at
most. The mean divides that by the weights: of n updates with the weights w it is off by at most n / sum(w) * 2^-41,
never more than 4.5e-13, and with examples as weights less by their mean number. It is then rounded once, to float32,
whose own rounding is coarser for every mean above 2^-17; and the parameter that the mean is added to rounds at 2^-41
or more if it is above 2^-17 itself.

Sixty-one bits of the eight bytes are used: the largest values of all terms may add up to 2^20. That is a million
clients of weight 1 whose values are at most 1, or a thousand with ten thousand examples each and values up to 0.1. An
array whose sum might be larger gets four bytes more a value, for multiples of 2^21: then it may add up to 2^50.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_UNITS = 2.0**40  # in one
_BITS = 61  # of a low part, which lies between -2^60 and 2^60 units once it is carried
_HIGH = 2**_BITS  # units in one of the high part
_LOW_LIMIT = 2.0**20  # what the largest values of all terms may add up to without a high part: 2^60 units
_LIMIT = 2.0**50  # and with one, whose 32 bits it leaves a reserve of two
_CHUNK = 1 << 13  # values at once: what they take on their way stays in the processor's cache
_LARGEST = 2.0**40  # a value times its weight; far below the limit, so that no update leaves others without room


class ReduceError(ValueError):
    """A value that can't take part in a mean: not finite, above 2^40, or so large that the sum could pass 2^50."""


class ExactMean:
    """Weighted mean of named arrays: `add` updates, `merge` partial means, ask for the `result`."""

    def __init__(self) -> None:
        self._low: dict[str, npt.NDArray[np.int64]] = {}
        self._high: dict[str, npt.NDArray[np.int32]] = {}  # only of arrays that need one
        self._bounds: dict[str, float] = {}  # no value of an array's sum is larger than this
        self._weight = 0
        self._count = 0

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
        bounds: dict[str, float] = {}
        for name, value in update.items():
            here = float(max(np.max(value, initial=0.0), -np.min(value, initial=0.0))) * weight
            bounds[name] = self._bounds.get(name, 0.0) + here
            if not (here <= _LARGEST and bounds[name] <= _LIMIT):  # also true of NaN
                raise ReduceError(f"{name}: not finite, or too large to average")
        for name, value in update.items():
            if name not in self._low:
                self._low[name] = np.zeros(value.shape, np.int64)
            self._make_room(name, bounds[name])
            for part, low, high in _chunks(value, self._low[name], self._high.get(name)):
                term = part.astype(np.float64)
                term *= weight * _UNITS  # exact: 24 + 29 bits, times a power of two
                if high is not None:
                    whole = np.rint(term / _HIGH)
                    np.add(high, whole.astype(np.int32), out=high)
                    term -= whole * _HIGH
                np.add(low, np.rint(term, out=term).astype(np.int64), out=low)
                if high is not None:
                    _carry(low, high)
        self._weight += weight
        self._count += 1

    def merge(self, other: Self) -> None:
        """Fold in another partial mean, which keeps its value.

        Raises:
            ReduceError: the two together could pass what can be held.
            ValueError: names or shapes of the two differ.
        """
        if other._count:
            self._check_form(other._low)
        bounds = {name: self._bounds.get(name, 0.0) + bound for name, bound in other._bounds.items()}
        if any(bound > _LIMIT for bound in bounds.values()):
            raise ReduceError("the sum of two partial means is too large to average")
        for name, added in other._low.items():
            if name not in self._low:
                self._low[name] = np.zeros(added.shape, np.int64)
            self._make_room(name, bounds[name])
            own = self._low[name], self._high.get(name)
            for low, high, more, more_high in _chunks(*own, added, other._high.get(name)):
                np.add(low, more, out=low)
                if more_high is not None:  # then the sum of the two bounds has made room here too
                    np.add(high, more_high, out=high)
                if high is not None:
                    _carry(low, high)
        self._weight += other._weight
        self._count += other._count

    def result(self) -> dict[str, npt.NDArray[np.float32]]:
        """The mean, rounded to the nearest float32, to the last bit of what is held while the weights add up to less
        than 2^28.

        Raises:
            ValueError: nothing was added.
        """
        if self._count == 0:
            raise ValueError("the mean of no updates")
        found = {name: np.empty(low.shape, np.float32) for name, low in self._low.items()}
        for name, mean in found.items():
            for low, high, part in _chunks(self._low[name], self._high.get(name), mean):
                part[...] = _nearest(low, high, self._weight)
        return found

    def _check_form(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if self._count and (
            arrays.keys() != self._low.keys() or any(arrays[k].shape != v.shape for k, v in self._low.items())
        ):
            raise ValueError("the update's names or shapes differ from those of the first one")

    def _make_room(self, name: str, bound: float) -> None:
        """Let an array's sum grow up to a bound."""
        self._bounds[name] = bound
        if bound > _LOW_LIMIT and name not in self._high:
            self._high[name] = np.zeros(self._low[name].shape, np.int32)


def _carry(low: npt.NDArray[np.int64], high: npt.NDArray[np.int32]) -> None:
    """Bring low parts back to between -2^60 and 2^60. Around zero, not above it: or a small negative sum would be the
    difference of two large numbers, of which a float64 keeps little."""
    carried = (low + _HIGH // 2) >> _BITS
    np.add(high, carried.astype(np.int32), out=high)
    np.subtract(low, carried << _BITS, out=low)


def _chunks(*arrays: npt.NDArray[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Some values at a time of arrays of one shape: views, flat. The first is an array; None stays None."""
    rows = [None if array is None else array.reshape(-1) for array in arrays]
    assert rows[0] is not None
    for start in range(0, rows[0].size, _CHUNK):
        yield tuple(None if row is None else row[start : start + _CHUNK] for row in rows)


def _nearest(low: npt.NDArray[np.int64], high: npt.NDArray[np.int32] | None, weight: int) -> npt.NDArray[np.float32]:
    """A sum over a weight as float32, rounded once, ties to even.

    A quotient that was rounded to float64 may lie on the wrong side of the middle of two float32s, or right on it.
    The integers decide: they are compared with the middle, which is exact (25 bits, times 28 of the weight).
    """
    total = low.astype(np.float64)
    if high is not None:
        total += high * float(_HIGH)
    quotient = total / (_UNITS * weight)
    found = quotient.astype(np.float32)
    other = np.nextafter(found, np.where(quotient > found, np.inf, -np.inf).astype(np.float32))
    middle = (found.astype(np.float64) + other) / 2
    at_middle = middle * weight * _UNITS
    middle_high = np.rint(at_middle / _HIGH)
    at_middle -= middle_high * _HIGH
    middle_low = np.rint(at_middle)
    # Two of the high part apart settle it; nearer, the difference in units is a whole number less at most a half, and
    # both are exact.
    beyond = np.clip((0 if high is None else high) - middle_high.astype(np.int64), -2, 2)
    whole = low + (beyond << _BITS) - middle_low.astype(np.int64)
    difference = whole.astype(np.float64) - (at_middle - middle_low)
    tie = middle.astype(np.float32)
    larger, smaller = np.maximum(found, other), np.minimum(found, other)
    return np.where(difference > 0, larger, np.where(difference < 0, smaller, tie))
