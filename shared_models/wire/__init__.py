"""An update on its way from a client to the server: as it is, or compressed.

What a client sends is a function of the update alone, and under privacy the update is noised before it comes here. So
compression is post-processing: it changes neither what was released nor what was charged (docs/wire.md).

A form is a file with `NAMES` of its arrays, `encode` and `decode`; float32 and float16 go value by value, as a model
does (`parameters`).
"""

from __future__ import annotations

from flwr.app import ArrayRecord

from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays
from shared_models.wire import int8, top_k

__all__ = ["decode_update", "encode_update", "leaves_out", "update_arrays"]


def encode_update(update: Parameters, layout: Layout, *, seed: int) -> ArrayRecord:
    """An update in the layout's form. Number, types and lengths of the arrays follow from the layout alone.

    Args:
        update: change of the parameters.
        layout: of the plan's model.
        seed: what is random in the encoding follows from it.

    Raises:
        LayoutError: names or shapes differ from the layout, or it is too large for its form.
    """
    if layout.wire == "int8":
        return int8.encode(update, layout, seed)
    if layout.wire == "top-k":
        return top_k.encode(update, layout)
    return to_arrays(update, layout)


def decode_update(record: ArrayRecord, layout: Layout) -> Parameters:
    """What arrived, as float32. It may hold NaN or infinity, where a client's training diverged.

    Raises:
        LayoutError: names, shapes or types are not those of the layout's form, or the bytes are damaged.
        DamagedError: the form is right, but no honest client sends this.
    """
    if layout.wire == "int8":
        return int8.decode(record, layout)
    if layout.wire == "top-k":
        return top_k.decode(record, layout)
    return from_arrays(record, layout)


def update_arrays(layout: Layout) -> tuple[str, ...]:
    """Names of the arrays that an update travels as, in order."""
    if layout.wire == "int8":
        return int8.NAMES
    if layout.wire == "top-k":
        return top_k.NAMES
    return tuple(name for name, _ in layout.entries)


def leaves_out(layout: Layout) -> bool:
    """Whether updates travel in part, so that the rest has to be kept for the next one (error feedback)."""
    return layout.wire == "top-k"
