"""A model's trainable parameters on the wire.

Only what is trained travels, under its own name, as a Flower `ArrayRecord`. Both sides derive the same `Layout` from
the plan's model and compare its digest before anything is computed, so a wrong name, shape or type is found at once.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord

Parameters = dict[str, npt.NDArray[np.float32]]
Wire = Literal["float32", "float16"]


class LayoutError(ValueError):
    """Arrays that don't have the names, shapes and types of the plan's model. The text names the first difference."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's trainable parameters, in order, and their type on the wire."""

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    wire: Wire

    @property
    def digest(self) -> str:
        """SHA-256 of names, shapes and wire type, in hexadecimal."""
        text = json.dumps([self.wire, [[name, list(shape)] for name, shape in self.entries]], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.entries)


def layout_of(model: torch.nn.Module, wire: Wire) -> Layout:
    """The layout of a model's trainable parameters."""
    return Layout(
        entries=tuple((name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad),
        wire=wire,
    )


def get_parameters(model: torch.nn.Module) -> Parameters:
    """A copy of the trainable parameters as float32 arrays on the CPU."""
    return {
        name: p.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def set_parameters(model: torch.nn.Module, parameters: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy values into the model's trainable parameters, in place.

    Raises:
        KeyError: a parameter has no value.
        RuntimeError: a value has another shape than its parameter (torch alone would repeat it until it fits).
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                value = np.asarray(parameters[name], order="C")
                if value.shape != p.shape:
                    raise RuntimeError(f"parameter {name}: the value has shape {value.shape}, not {tuple(p.shape)}")
                p.copy_(torch.from_numpy(value))


def to_arrays(parameters: Mapping[str, npt.NDArray[np.float32]], layout: Layout) -> ArrayRecord:
    """Encode parameters (or an update) for the wire.

    Under float16, finite values beyond its range become its largest values. NaN and infinity stay what they are, so
    that the other side sees them.

    Raises:
        LayoutError: names or shapes differ from the layout.
    """
    if parameters.keys() != {name for name, _ in layout.entries}:
        raise LayoutError("the parameters' names are not those of the layout")
    arrays: dict[str, Array] = {}
    for name, shape in layout.entries:
        value = np.asarray(parameters[name], dtype=np.float32)
        if value.shape != shape:
            raise LayoutError(f"parameter {name}: has shape {value.shape}, not {shape}")
        if layout.wire == "float16":
            limit = np.finfo(np.float16).max
            value = np.where(np.isfinite(value), np.clip(value, -limit, limit), value).astype(np.float16)
        arrays[name] = Array(np.asarray(value, order="C"))  # unlike ascontiguousarray it leaves a scalar a scalar
    return ArrayRecord(arrays)


def from_arrays(record: ArrayRecord, layout: Layout) -> Parameters:
    """Decode arrays from the wire to float32, trusting nothing they say.

    Raises:
        LayoutError: names, shapes or types differ from the layout, or the bytes are damaged.
    """
    names = [name for name, _ in layout.entries]
    if list(record.keys()) != names:
        raise LayoutError("the parameters' names are not those of the plan's model")
    return {name: _decode(record[name], name, shape, layout.wire) for name, shape in layout.entries}


def _decode(array: Array, name: str, shape: tuple[int, ...], wire: Wire) -> npt.NDArray[np.float32]:
    """One array. The header is compared before a byte of content is read, so a lie can't make us allocate."""
    dtype = np.dtype(wire)
    buffer = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(buffer)
        if version != (1, 0):
            raise LayoutError(f"parameter {name}: unknown array format {version}")
        found, fortran, found_dtype = np.lib.format.read_array_header_1_0(buffer, max_header_size=1000)
    except LayoutError:
        raise
    except Exception as error:  # whatever NumPy's parser makes of hostile bytes
        raise LayoutError(f"parameter {name}: damaged array") from error
    if found != shape or found_dtype != dtype or (fortran and len(shape) > 1):
        raise LayoutError(f"parameter {name}: has shape {found} and type {found_dtype}, not {shape} and {dtype}")
    start = buffer.tell()
    if len(array.data) - start != dtype.itemsize * int(np.prod(shape, dtype=np.int64)):
        raise LayoutError(f"parameter {name}: damaged array")
    return np.frombuffer(array.data, dtype=dtype, offset=start).reshape(shape).astype(np.float32)


def wire_bytes(record: ArrayRecord) -> int:
    """Bytes the arrays of a record take on the wire."""
    return sum(len(array.data) for array in record.values())
