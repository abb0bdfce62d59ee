"""A model cut into parts of a few coordinates, for what is computed of each coordinate by itself.

An array is cut into pieces of two values or more, and one of a single value is left as it is. NumPy adds up one column
in another order than several, and so a piece of one value might differ in its last bit from the same value in the
whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from shared_models.parameters import Parameters

Part = Mapping[str, slice | None]
"""Places in the named arrays, counted in C order; None for a whole array in its own shape."""


def parts(model: Mapping[str, npt.NDArray[np.float32]], most: int) -> Iterator[Part]:
    """Every value once, in order, and no more than so many in a part.

    Raises:
        ValueError: fewer than four at a time.
    """
    if most < 4:
        raise ValueError(f"parts of {most} values: four is the least")
    part: dict[str, slice | None] = {}
    room = most
    for name, value in model.items():
        pieces = -(-value.size // most)
        ends = [value.size * i // pieces for i in range(pieces + 1)] if pieces > 1 else [0, value.size]
        for start, stop in pairwise(ends):
            if part and (stop - start > room or name in part):
                yield part
                part, room = {}, most
            part[name] = slice(start, stop) if pieces > 1 else None
            room -= stop - start
    if part:
        yield part


def cut_out(model: Parameters, part: Part) -> Parameters:
    """A part of a model, as views of it (of C-contiguous arrays)."""
    return {name: model[name] if where is None else model[name].reshape(-1)[where] for name, where in part.items()}
