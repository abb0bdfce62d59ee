"""The largest values alone: exactly those, exactly as they were, and lies are found out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shared_models.parameters import DamagedError, Layout, LayoutError, Parameters, wire_bytes
from shared_models.wire import top_k

ENTRIES = (("weight", (2, 3)), ("scale", ()), ("none", (0, 4)), ("bias", (3,)))
LAYOUT = Layout(entries=ENTRIES, wire="top-k", top_fraction=0.4)
UPDATE: Parameters = {
    "weight": np.float32([[1.0, -0.5, 0.0], [1e-3, -4.0, 0.25]]),
    "scale": np.array(3.0, np.float32),
    "none": np.zeros((0, 4), np.float32),
    "bias": np.float32([0.1, -2.0, 0.0]),
}


def flat(size: int, fraction: float) -> Layout:
    return Layout(entries=(("x", (size,)),), wire="top-k", top_fraction=fraction)


def record(indices: Any = (0, 4, 6, 8), values: Any = (1, 2, 3, 4)) -> ArrayRecord:
    def array(given: Any, kind: str) -> Array:
        return given if isinstance(given, Array) else Array(np.asarray(given, kind))

    return ArrayRecord({"indices": array(indices, "uint32"), "values": array(values, "float32")})


# --- values --------------------------------------------------------------------------------------------------------


def test_the_largest_of_the_whole_update_arrive_as_they_were_and_the_rest_as_zero() -> None:
    sent = top_k.encode(UPDATE, LAYOUT)
    assert sent["indices"].numpy().tolist() == [0, 4, 6, 8]
    assert sent["values"].numpy().tolist() == [1.0, -4.0, 3.0, -2.0]
    found = top_k.decode(sent, LAYOUT)
    assert {name: (value.dtype, value.shape) for name, value in found.items()} == {
        name: (np.dtype(np.float32), shape) for name, shape in ENTRIES
    }
    assert found["weight"].tolist() == [[1, 0, 0], [0, -4, 0]]
    assert (float(found["scale"]), found["bias"].tolist()) == (3.0, [0, -2, 0])


@settings(deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 60),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -3e38]) | st.floats(width=32),
    ),
    st.floats(1e-3, 1),
)
def test_they_are_those_that_a_stable_sort_by_magnitude_puts_first(
    value: npt.NDArray[np.float32], fraction: float
) -> None:
    layout = flat(value.size, fraction)
    sent = top_k.encode({"x": value}, layout)
    magnitude = np.where(np.isnan(value), np.inf, np.abs(value))
    count = max(1, round(fraction * value.size))
    first = sorted(sorted(range(value.size), key=lambda place: -magnitude[place])[:count])
    assert sent["indices"].numpy().tolist() == first
    assert sent["values"].numpy().tobytes() == value[first].tobytes()
    decoded = top_k.decode(sent, layout)["x"]
    left_out = np.setdiff1d(np.arange(value.size), first)
    assert decoded[first].tobytes() == value[first].tobytes()
    assert not decoded[left_out].any()


@pytest.mark.parametrize(
    ("size", "fraction", "count"), [(1, 1e-9, 1), (1000, 1e-9, 1), (1000, 0.0149, 15), (7, 1.0, 7), (7, 0.5, 4)]
)
def test_how_many_are_sent_follows_from_the_layout_alone(size: int, fraction: float, count: int) -> None:
    for values in (np.zeros(size), np.ones(size), np.full(size, np.nan), np.arange(size)):
        sent = top_k.encode({"x": values.astype(np.float32)}, flat(size, fraction))
        assert len(sent["indices"].numpy()) == len(sent["values"].numpy()) == count


def test_a_model_without_values_sends_none() -> None:
    layout = Layout(entries=(("none", (0, 4)),), wire="top-k", top_fraction=0.5)
    update = {"none": np.zeros((0, 4), np.float32)}
    assert top_k.decode(top_k.encode(update, layout), layout)["none"].shape == (0, 4)
    empty = Layout(entries=(), wire="top-k", top_fraction=0.5)
    assert top_k.decode(top_k.encode({}, empty), empty) == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_sent_before_anything_else(bad: float) -> None:
    value = np.full(1000, 3e38, np.float32)
    value[500] = bad
    found = top_k.decode(top_k.encode({"x": value}, flat(1000, 0.001)), flat(1000, 0.001))["x"]
    assert np.array_equal(found[500], np.float32(bad), equal_nan=True)


def test_it_takes_eight_bytes_for_each_value_that_is_sent_and_two_heads() -> None:
    assert wire_bytes(top_k.encode({"x": np.ones(10_000, np.float32)}, flat(10_000, 0.01))) == 100 * 8 + 2 * 128


@pytest.mark.parametrize("update", [{"weight": UPDATE["weight"]}, {**UPDATE, "bias": np.zeros((3, 1), np.float32)}])
def test_an_update_that_does_not_fit_the_layout_is_not_sent(update: Parameters) -> None:
    with pytest.raises(LayoutError):
        top_k.encode(update, LAYOUT)


# --- bytes from elsewhere ------------------------------------------------------------------------------------------


def test_the_good_record_of_these_tests_is_taken() -> None:
    found = top_k.decode(record(), LAYOUT)
    assert [found["weight"][0, 0], found["weight"][1, 1], float(found["scale"]), found["bias"][1]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "sent",
    [
        record(indices=(0, 4, 6)),
        record(indices=(0, 4, 6, 8, 9)),
        record(values=(1, 2, 3)),
        record(values=(1, 2, 3, 4, 5)),
        record(indices=(), values=()),
        record(indices=Array(np.int32([0, 4, 6, 8]))),
        record(indices=Array(np.uint64([0, 4, 6, 8]))),
        record(indices=Array(np.float32([0, 4, 6, 8]))),
        record(indices=Array(np.array([0, 4, 6, 8], ">u4"))),
        record(indices=Array(np.uint32([[0, 4], [6, 8]]))),
        record(values=Array(np.float64([1, 2, 3, 4]))),
        record(values=Array(np.float16([1, 2, 3, 4]))),
        record(values=Array("float32", (4,), "numpy.ndarray", Array(np.ones(4, np.float32)).data[:-1])),
        record(indices=Array("uint32", (4,), "numpy.ndarray", Array(np.uint32([0, 4, 6, 8])).data + b"\0")),
        record(indices=Array("uint32", (4,), "numpy.ndarray", b"\x93NUMPY")),
    ],
)
def test_another_number_shape_or_type_is_refused(sent: ArrayRecord) -> None:
    with pytest.raises(LayoutError) as caught:
        top_k.decode(sent, LAYOUT)
    assert not isinstance(caught.value, DamagedError)


@pytest.mark.parametrize(
    "change",
    [
        lambda good: {"indices": good["indices"]},
        lambda good: {"values": good["values"], "indices": good["indices"]},
        lambda good: {**good, "more": good["values"]},
        lambda good: {"weight": good["values"]},
        lambda good: {},
    ],
)
def test_other_names_or_another_order_are_refused(change: Callable[[Any], dict[str, Array]]) -> None:
    with pytest.raises(LayoutError, match="names are not indices, values"):
        top_k.decode(ArrayRecord(change(dict(record()))), LAYOUT)


@pytest.mark.parametrize(
    "indices",
    [(0, 4, 6, 10), (0, 4, 6, 2**32 - 1), (10, 11, 12, 13), (0, 4, 4, 8), (8, 6, 4, 0), (0, 6, 4, 8), (0, 0, 0, 0)],
)
def test_places_that_are_not_there_twice_there_or_out_of_order_are_damage(indices: tuple[int, ...]) -> None:
    with pytest.raises(DamagedError):
        top_k.decode(record(indices=indices), LAYOUT)


def test_a_large_layout_and_a_short_content_make_nobody_allocate_it() -> None:
    layout = Layout(entries=(("x", (10**6, 10**6)),), wire="top-k", top_fraction=0.5)
    tracemalloc.start()
    try:
        with pytest.raises(LayoutError):
            top_k.decode(record(), layout)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
