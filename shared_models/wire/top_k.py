"""The largest values of the whole update by magnitude, with their places; the rest waits for the next update.

Stich et al. 2018 (arXiv 1809.07599): what is left out is kept and added to the next update before it is chosen from
again, so that every value arrives in the end (error feedback; Karimireddy et al. 2019, arXiv 1901.09847, on why it is
needed). Who sends keeps it (`client.error_feedback`); here is one message.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

from shared_models.parameters import DamagedError, Layout, LayoutError, Parameters, in_order, read_array

NAMES: Final = ("indices", "values")
_MOST: Final = 2**32  # places that 32 bits tell apart


def encode(update: Parameters, layout: Layout) -> ArrayRecord:
    """Choose the values and write down their places, counted over all arrays in the layout's order, rising.

    Nothing here is random. Of equal magnitudes the first are sent; NaN counts as larger than everything, so that it
    shows.

    Raises:
        LayoutError: names or shapes differ from the layout, or it has more values than 32 bits can count.
    """
    values = np.concatenate([np.zeros(0, np.float32), *(value.ravel() for _, value in in_order(update, layout))])
    if values.size > _MOST:
        raise LayoutError(f"{values.size} values: top-k counts them in 32 bits; use another federation.wire")
    indices = _largest(values, _count(layout))
    return ArrayRecord({"indices": Array(indices.astype(np.uint32)), "values": Array(values[indices])})


def decode(record: ArrayRecord, layout: Layout) -> Parameters:
    """The values at their places, zero elsewhere.

    Raises:
        LayoutError: names, shapes or types differ, or the bytes are damaged.
        DamagedError: a place that isn't there, or places that don't rise.
    """
    if tuple(record.keys()) != NAMES:
        raise LayoutError("the arrays' names are not indices, values")
    count = _count(layout)
    indices = read_array(record["indices"], "indices", (count,), "uint32")
    values = read_array(record["values"], "values", (count,), "float32")
    if count and (indices[-1] >= layout.size or (indices[1:] <= indices[:-1]).any()):
        raise DamagedError("places beyond the model, or not in rising order")
    whole = np.zeros(layout.size, np.float32)
    whole[indices] = values
    found: Parameters = {}
    place = 0
    for name, shape in layout.entries:
        size = int(np.prod(shape, dtype=np.int64))
        found[name] = whole[place : place + size].reshape(shape)
        place += size
    return found


def _count(layout: Layout) -> int:
    """How many values are sent: the layout's part of all, rounded, and at least one."""
    assert layout.top_fraction is not None  # a layout of this form has one
    return min(layout.size, max(1, round(layout.top_fraction * layout.size)))


def _largest(values: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    """Places of the largest, rising. By the magnitude of the last one that is sent, not by a partial sort of places:
    those order equal magnitudes differently from one processor to the next."""
    if count == 0:
        return np.zeros(0, np.int64)
    magnitude = np.abs(values)
    magnitude[np.isnan(magnitude)] = np.inf
    least = np.partition(magnitude, values.size - count)[values.size - count]
    above = np.flatnonzero(magnitude > least)
    equal = np.flatnonzero(magnitude == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal]))
