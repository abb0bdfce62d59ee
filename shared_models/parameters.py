"""A model's trainable parameters on the wire.

Only what is trained travels, under its own name, as a Flower `ArrayRecord`. Both sides derive the same `Layout` from
the plan's model and compare its digest before anything is computed, so a wrong name, shape or type is found at once.

This is how a model goes down to the clients. How an update comes back, perhaps compressed, is `wire`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import Array, ArrayRecord

from shared_models.flower_messages import make_array

_NUMPY: Final = "numpy.ndarray"  # how Flower names NumPy's own format
_AT_ONCE: Final = 2**16  # values

Parameters = dict[str, npt.NDArray[np.float32]]
Wire = Literal["float32", "float16", "int8", "top-k"]


class LayoutError(ValueError):
    """Arrays that don't have the names, shapes and types of the plan's model. The text names the first difference."""


class DamagedError(LayoutError):
    """Arrays of the right form that hold what no honest sender would send."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's trainable parameters, in order, and how they travel.

    Attributes:
        entries: name and shape of each.
        wire: form of an update on its way to the server. The model goes down as float16 where that is float16, else
            as float32.
        top_fraction: with "top-k": part of all values that is sent; else None.

    Raises:
        ValueError: a fraction without "top-k", "top-k" without one, or one that is no part.
    """

    entries: tuple[tuple[str, tuple[int, ...]], ...]
    wire: Wire
    top_fraction: float | None = None

    def __post_init__(self) -> None:
        fraction = self.top_fraction
        if (self.wire == "top-k") != (fraction is not None) or not 0 < (1 if fraction is None else fraction) <= 1:
            raise ValueError(f"wire {self.wire!r} with a top fraction of {fraction}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, shapes, wire and fraction, in hexadecimal."""
        parts: list[Any] = [self.wire, [[name, list(shape)] for name, shape in self.entries]]
        if self.top_fraction is not None:
            parts.append(self.top_fraction)
        return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Number of trained values."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.entries)

    @property
    def model_type(self) -> Literal["float32", "float16"]:
        """Number format of the model on its way down."""
        return "float16" if self.wire == "float16" else "float32"


@dataclass(frozen=True)
class Size:
    """How many numbers a network has: those that learn and travel, and those that stay as they are."""

    trained: int
    frozen: int


def size_of(model: torch.nn.Module) -> Size:
    """The size of a network; also of one of shapes alone (torch's meta device)."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Size(trained, sum(p.numel() for p in model.parameters()) - trained)


def layout_of(model: torch.nn.Module, wire: Wire, top_fraction: float | None = None) -> Layout:
    """The layout of a model's trainable parameters."""
    return Layout(
        entries=tuple((name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad),
        wire=wire,
        top_fraction=top_fraction,
    )


def get_parameters(model: torch.nn.Module) -> Parameters:
    """A copy of the trainable parameters as float32 arrays on the CPU."""
    return {
        name: p.detach().to("cpu", torch.float32, copy=True).numpy()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def set_parameters(model: torch.nn.Module, parameters: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Copy values, perhaps read-only ones, into the model's trainable parameters, in place.

    Raises:
        KeyError: a parameter has no value.
        RuntimeError: a value has another shape than its parameter (torch alone would repeat it until it fits).
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                value = np.asarray(parameters[name])
                if value.shape != p.shape:
                    raise RuntimeError(f"parameter {name}: the value has shape {value.shape}, not {tuple(p.shape)}")
                if p.device.type == "cpu" and p.dtype == torch.float32:
                    np.copyto(p.detach().numpy(), value)
                else:
                    p.copy_(torch.tensor(value))


def to_arrays(parameters: Mapping[str, npt.NDArray[np.float32]], layout: Layout) -> ArrayRecord:
    """Encode a model for the wire (or an update that goes value by value).

    Under float16, finite values beyond its range become its largest values. NaN and infinity stay what they are, so
    that the other side sees them. Values that are views of such a record (`as_sent`) are not copied.

    Raises:
        LayoutError: names or shapes differ from the layout.
    """
    arrays: dict[str, Array] = {}
    for name, value in in_order(parameters, layout):
        sent = _as_float16(value) if layout.model_type == "float16" else value
        arrays[name] = _array(sent)
    return ArrayRecord(arrays)


def as_sent(parameters: Parameters, layout: Layout) -> Parameters:
    """A model as read-only views of the bytes that it travels as: whoever sends it then holds it once, not twice.

    Under float16, where what travels is another model, it is returned as it is.

    Raises:
        LayoutError: names or shapes differ from the layout.
    """
    return parameters if layout.model_type == "float16" else from_arrays(to_arrays(parameters, layout), layout)


def _array(value: npt.NDArray[Any]) -> Array:
    """As Flower makes one of an array, with fewer steps in between, and a copy at most."""
    kind = value.dtype.name
    header = _header(value.shape, kind)
    data = _travelled_as(value, header) or b"".join((header, bytes_of(value)))
    return make_array({"dtype": kind, "shape": tuple(value.shape), "stype": _NUMPY, "data": data})


def bytes_of(value: npt.NDArray[Any]) -> memoryview:
    """An array's values in C order, byte for byte; of a contiguous array its own."""
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def _travelled_as(value: npt.NDArray[Any], header: bytes) -> bytes | None:
    """The bytes that an array is a view of, if they are this header and all of the array."""
    owner = value.base
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if not isinstance(owner, bytes) or len(owner) != len(header) + value.nbytes or not owner.startswith(header):
        return None
    whole = np.frombuffer(owner, value.dtype, offset=len(header))
    same = value.flags.c_contiguous and value.ctypes.data == whole.ctypes.data
    return owner if same else None


def _as_float16(value: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    limit = np.finfo(np.float16).max
    return np.where(np.isfinite(value), np.clip(value, -limit, limit), value).astype(np.float16)


def from_arrays(record: ArrayRecord, layout: Layout) -> Parameters:
    """Decode what `to_arrays` made to float32, trusting nothing it says. Under float32 the values are views of the
    record's own bytes, not to be written to.

    Raises:
        LayoutError: names, shapes or types differ from the layout, or the bytes are damaged.
    """
    names = [name for name, _ in layout.entries]
    if list(record.keys()) != names:
        raise LayoutError("the parameters' names are not those of the plan's model")
    return {
        name: np.require(read_array(record[name], name, shape, layout.model_type), np.float32, "A")
        for name, shape in layout.entries
    }


def in_order(
    parameters: Mapping[str, npt.NDArray[np.float32]], layout: Layout
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Names and values in the layout's order, each of the layout's shape.

    Raises:
        LayoutError: names or shapes differ from the layout.
    """
    if parameters.keys() != {name for name, _ in layout.entries}:
        raise LayoutError("the parameters' names are not those of the layout")
    for name, shape in layout.entries:
        value = np.asarray(parameters[name], dtype=np.float32)
        if value.shape != shape:
            raise LayoutError(f"parameter {name}: has shape {value.shape}, not {shape}")
        yield name, value


def all_finite(parameters: Mapping[str, npt.NDArray[np.float32]]) -> bool:
    """Whether no value is NaN or infinity; looked at some at a time, so that it takes no memory to speak of."""
    return all(
        bool(np.isfinite(row[start : start + _AT_ONCE]).all())
        for row in (value.reshape(-1) for value in parameters.values())
        for start in range(0, row.size, _AT_ONCE)
    )


def unflat(values: npt.NDArray[np.float32], layout: Layout) -> Parameters:
    """All trained values in one row, in the layout's order, as named arrays.

    Raises:
        ValueError: there are more or fewer of them.
    """
    if values.shape != (layout.size,):
        raise ValueError(f"{values.shape} values don't fill a layout of {layout.size}")
    found, start = {}, 0
    for name, shape in layout.entries:
        end = start + int(np.prod(shape, dtype=np.int64))
        found[name] = values[start:end].reshape(shape)
        start = end
    return found


def read_array(array: Array, name: str, shape: tuple[int, ...], type_name: str) -> npt.NDArray[Any]:
    """One array off the wire, as it is in the message's own bytes: not to be written to.

    The header is compared before a byte of content is read, so a lie can't make us allocate.

    Raises:
        LayoutError: it has another shape or type, or its bytes are damaged.
    """
    dtype, data = np.dtype(type_name), array.data
    usual = _header(shape, type_name)
    start = len(usual) if data.startswith(usual) else _end_of_header(data, name, shape, dtype)
    if len(data) - start != dtype.itemsize * math.prod(shape):
        raise LayoutError(f"parameter {name}: damaged array")
    return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)
def _header(shape: tuple[int, ...], type_name: str) -> bytes:
    """What NumPy writes before the values: mostly there is nothing else to read."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(type_name))
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _end_of_header(data: bytes, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Where the values begin behind a header that is written otherwise, but says the same."""
    buffer = io.BytesIO(data)
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
    return buffer.tell()


def wire_bytes(record: ArrayRecord) -> int:
    """Bytes the arrays of a record take on the wire."""
    return sum(len(array.data) for array in record.values())
