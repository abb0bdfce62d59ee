"""Parameters on the wire: exact round trips, one layout on both sides, and no trust in bytes from elsewhere."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from shared_models.parameters import (
    Layout,
    LayoutError,
    Parameters,
    Wire,
    all_finite,
    as_sent,
    from_arrays,
    get_parameters,
    layout_of,
    set_parameters,
    to_arrays,
    unflat,
    wire_bytes,
)

LAYOUT = Layout(entries=(("weight", (2, 3)), ("bias", (3,))), wire="float32")
VALUES: Parameters = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.float32([0.1, -0.2, 1e-30]),
}


class Frozen(nn.Module):
    """A network of which only a part is trained, with a parameter of no axes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("seen", torch.zeros(1))
        for parameter in self.body.parameters():
            parameter.requires_grad = False


def record(**changed: Array) -> ArrayRecord:
    """Good arrays, but for those that are given."""
    good = to_arrays(VALUES, LAYOUT)
    return ArrayRecord({name: changed.get(name, good[name]) for name in good})


def with_bytes(data: bytes) -> ArrayRecord:
    return record(bias=Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=data))


def npy(
    header: str | bytes, content: bytes = b"", *, version: tuple[int, int] = (1, 0), length: int | None = None
) -> bytes:
    """An .npy file with any header."""
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    size = len(text) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", size) + text + content


HEADER = "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }"


# --- round trips ---------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    st.sampled_from(["C", "F"]),
)
def test_float32_comes_back_bit_for_bit(value: npt.NDArray[np.float32], order: Any) -> None:
    layout = Layout(entries=(("x", value.shape),), wire="float32")
    found = from_arrays(to_arrays({"x": np.asarray(value, order=order)}, layout), layout)["x"]
    assert found.dtype == np.float32
    assert found.shape == value.shape
    assert found.tobytes() == np.asarray(value, order="C").tobytes()


@settings(deadline=None)
@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=0, max_dims=3, max_side=4)))
def test_float16_rounds_and_is_clipped_to_its_range(value: npt.NDArray[np.float32]) -> None:
    layout = Layout(entries=(("x", value.shape),), wire="float16")
    found = from_arrays(to_arrays({"x": value}, layout), layout)["x"]
    finite = np.isfinite(value)
    expected = np.clip(value, -65504, 65504).astype(np.float16).astype(np.float32)
    assert found.dtype == np.float32
    assert np.array_equal(found[finite], expected[finite])
    assert np.isfinite(found[finite]).all()
    # What diverged must not look like a large but honest value: the server leaves such an update out.
    assert np.array_equal(found[~finite], value[~finite], equal_nan=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(65504, 65504), (65519, 65504), (65520, 65504), (1e30, 65504), (-7e4, -65504), (1e-9, 0), (2049, 2048)],
)
def test_the_edges_of_float16(value: float, expected: float) -> None:
    layout = Layout(entries=(("x", (1,)),), wire="float16")
    assert from_arrays(to_arrays({"x": np.float32([value])}, layout), layout)["x"] == expected


def test_the_wire_takes_two_or_four_bytes_a_value_and_survives_flowers_protobuf() -> None:
    from flwr.app import RecordDict

    big = {"x": np.zeros((100, 100), np.float32)}
    sizes = {}
    wires: tuple[Wire, ...] = ("float32", "float16")
    for wire in wires:
        layout = Layout(entries=(("x", (100, 100)),), wire=wire)
        sent = to_arrays(big, layout)
        sizes[wire] = wire_bytes(sent)
        there = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": sent})))
        assert np.array_equal(from_arrays(there.array_records["arrays"], layout)["x"], big["x"])
    assert 40_000 <= sizes["float32"] <= 40_200
    assert 20_000 <= sizes["float16"] <= 20_200


@pytest.mark.parametrize("wire", ["float32", "float16"])
def test_the_arrays_are_those_that_flower_makes_byte_for_byte(wire: Wire) -> None:
    values = {"one": np.float32(0.5).reshape(()), "none": np.zeros((0, 4), np.float32), "row": np.ones(7, np.float32)}
    values["turned"] = np.arange(12, dtype=np.float32).reshape(3, 4).T
    layout = Layout(entries=tuple((name, value.shape) for name, value in values.items()), wire=wire)
    for name, array in to_arrays(values, layout).items():
        assert array == Array(np.array(values[name], dtype=wire, order="C"))


def test_what_is_decoded_lies_in_the_records_own_bytes_and_may_not_be_changed() -> None:
    sent = to_arrays(VALUES, LAYOUT)
    found = from_arrays(sent, LAYOUT)
    for name, value in found.items():
        assert not value.flags.writeable
        assert np.shares_memory(value, np.frombuffer(sent[name].data, np.uint8))


def test_values_that_lie_askew_are_decoded_to_a_copy() -> None:
    """NumPy pads its headers; another sender need not. Torch can't read numbers at odd addresses."""
    (sent,) = to_arrays({"w": np.arange(3, dtype=np.float32)}, Layout((("w", (3,)),), "float32")).values()
    head = (
        b"\x93NUMPY\x01\x00"
        + b"\x3b\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }".ljust(58)
        + b"\n"
    )
    askew = ArrayRecord({"w": Array("float32", (3,), "numpy.ndarray", head + sent.data[-12:])})
    found = from_arrays(askew, Layout((("w", (3,)),), "float32"))["w"]
    assert found.flags.aligned
    assert found.tolist() == [0.0, 1.0, 2.0]


# --- a model that is sent -----------------------------------------------------------------------------------------


def test_a_model_as_it_is_sent_is_encoded_without_a_copy() -> None:
    model = as_sent(VALUES, LAYOUT)
    first, second = to_arrays(model, LAYOUT), to_arrays(model, LAYOUT)
    assert all(first[name].data is second[name].data for name in VALUES)
    assert dict(first) == dict(to_arrays(VALUES, LAYOUT))
    assert all(np.array_equal(model[name], VALUES[name]) for name in VALUES)


def test_under_float16_a_model_that_is_sent_is_another_one() -> None:
    assert as_sent(VALUES, Layout(LAYOUT.entries, "float16")) is VALUES


def test_views_of_a_part_of_a_message_are_encoded_as_what_they_show() -> None:
    square = np.arange(9, dtype=np.float32).reshape(3, 3)
    layout = Layout((("w", (3, 3)),), "float32")
    whole = as_sent({"w": square}, layout)["w"]
    for view in (whole.T, whole[::-1], whole[:, ::-1]):
        assert to_arrays({"w": view}, layout)["w"] == Array(np.array(view, order="C"))
    row = whole[1]
    assert to_arrays({"w": row}, Layout((("w", (3,)),), "float32"))["w"] == Array(row.copy())
    flat = whole.reshape(9)  # the same values under another header
    assert to_arrays({"w": flat}, Layout((("w", (9,)),), "float32"))["w"] == Array(flat.copy())


def test_a_large_model_is_encoded_in_one_copy() -> None:
    model, layout = {"w": np.ones(1_000_000, np.float32)}, Layout((("w", (1_000_000,)),), "float32")
    tracemalloc.start()
    sent = to_arrays(model, layout)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(sent["w"].data) <= most < 5_000_000


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 99_999, 150_000])
def test_what_is_not_finite_is_found_wherever_it_is(bad: float, place: int) -> None:
    values = np.zeros((2, 75_001), np.float32)
    assert all_finite({"none": np.zeros((0, 3), np.float32), "w": values, "one": np.float32(1).reshape(())})
    values.reshape(-1)[place] = bad
    assert not all_finite({"none": np.zeros((0, 3), np.float32), "w": values})


# --- a model's parameters ------------------------------------------------------------------------------------------


def test_only_what_is_trained_travels() -> None:
    model = Frozen()
    assert layout_of(model, "float32").entries == (("scale", ()), ("head.weight", (2, 3)), ("head.bias", (2,)))
    assert list(get_parameters(model)) == ["scale", "head.weight", "head.bias"]
    assert layout_of(model, "float16").size == 1 + 6 + 2
    assert layout_of(model, "float16").wire == "float16"


def test_parameters_go_from_one_model_to_another_through_the_wire() -> None:
    there, here = Frozen(), Frozen()
    layout = layout_of(there, "float32")
    body = here.body.weight.detach().clone()
    addresses = [p.data_ptr() for p in here.parameters()]
    set_parameters(here, from_arrays(to_arrays(get_parameters(there), layout), layout))
    assert torch.equal(here.head.weight, there.head.weight)
    assert torch.equal(here.head.bias, there.head.bias)
    assert torch.equal(here.scale, there.scale)
    assert torch.equal(here.body.weight, body)
    assert [p.data_ptr() for p in here.parameters()] == addresses  # in place: optimisers hold on to them


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_read_only_values_are_copied_in_quietly(dtype: torch.dtype) -> None:
    model = nn.Linear(2, 3, dtype=dtype)
    start = {"weight": np.arange(6, dtype=np.float32).reshape(3, 2), "bias": np.float32([1, 2, 3])}
    set_parameters(model, as_sent(start, layout_of(model, "float32")))
    assert all(np.array_equal(value, start[name]) for name, value in get_parameters(model).items())
    assert model.weight.dtype == dtype


def test_parameters_are_copied_out() -> None:
    model = Frozen()
    taken = get_parameters(model)
    before = {name: value.copy() for name, value in taken.items()}
    with torch.no_grad():
        model.head.weight.zero_()
        model.scale.zero_()
    assert all(np.array_equal(taken[name], value) for name, value in before.items())
    assert all(value.dtype == np.float32 for value in taken.values())


def test_odd_memory_layouts_are_no_matter() -> None:
    model = nn.Conv2d(3, 4, 5).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = layout_of(model, "float32")
    values = {name: np.asarray(value, order="F") for name, value in get_parameters(model).items()}
    assert not values["weight"].flags.c_contiguous
    set_parameters(model, from_arrays(to_arrays(values, layout), layout))
    assert np.array_equal(get_parameters(model)["weight"], values["weight"])
    set_parameters(model, {name: value[::1] for name, value in values.items()})
    assert np.array_equal(get_parameters(model)["weight"], values["weight"])


def test_values_that_do_not_fit_the_model_are_refused() -> None:
    model = nn.Linear(3, 3)
    good = get_parameters(model)
    with pytest.raises(KeyError):
        set_parameters(model, {"weight": good["weight"]})
    for wrong in (np.zeros((1, 3), np.float32), np.zeros(3, np.float32), np.zeros((3, 3, 1), np.float32)):
        with pytest.raises(RuntimeError, match=r"parameter weight: the value has shape .*, not \(3, 3\)"):
            set_parameters(model, {**good, "weight": wrong})
    assert np.array_equal(get_parameters(model)["weight"], good["weight"])


@pytest.mark.parametrize(
    "values",
    [
        {"weight": VALUES["weight"]},
        {**VALUES, "more": VALUES["bias"]},
        {**VALUES, "weight": VALUES["weight"].T},  # as many values, in another order: must not be reshaped
        {**VALUES, "weight": VALUES["weight"].ravel()},
        {**VALUES, "bias": np.zeros((3, 1), np.float32)},
    ],
)
def test_values_that_do_not_fit_the_layout_are_not_sent(values: Parameters) -> None:
    with pytest.raises(LayoutError):
        to_arrays(values, LAYOUT)


# --- the digest both sides compare ---------------------------------------------------------------------------------


def test_the_digest_depends_on_names_shapes_order_and_wire() -> None:
    layouts = [
        LAYOUT,
        Layout(entries=LAYOUT.entries, wire="float16"),
        Layout(entries=LAYOUT.entries, wire="int8"),
        Layout(entries=LAYOUT.entries, wire="top-k", top_fraction=0.01),
        Layout(entries=LAYOUT.entries, wire="top-k", top_fraction=0.010000000000000002),
        Layout(entries=LAYOUT.entries, wire="top-k", top_fraction=1.0),
        Layout(entries=LAYOUT.entries[::-1], wire="float32"),
        Layout(entries=LAYOUT.entries[:1], wire="float32"),
        Layout(entries=(("weight", (3, 2)), ("bias", (3,))), wire="float32"),
        Layout(entries=(("weight", (6,)), ("bias", (3,))), wire="float32"),
        Layout(entries=(("Weight", (2, 3)), ("bias", (3,))), wire="float32"),
        Layout(entries=(("weight", (2, 3)), ("bias", (3, 1))), wire="float32"),
        Layout(entries=(("weight", (23,)), ("bias", (3,))), wire="float32"),
        Layout(entries=(), wire="float32"),
    ]
    assert len({layout.digest for layout in layouts}) == len(layouts)
    assert Layout(entries=(("weight", (2, 3)), ("bias", (3,))), wire="float32").digest == LAYOUT.digest
    assert LAYOUT.digest == "8dd49f5292b17f3020807249412c1b7fd07922a66d213a15ef0b734371ff1f3f"


@pytest.mark.parametrize(
    ("wire", "fraction"), [("top-k", None), ("top-k", 0.0), ("top-k", 1.5), ("top-k", float("nan")), ("int8", 0.1)]
)
def test_a_fraction_is_top_ks_and_a_part(wire: Any, fraction: float | None) -> None:
    with pytest.raises(ValueError, match="wire"):
        Layout(entries=LAYOUT.entries, wire=wire, top_fraction=fraction)


names = st.text(max_size=4) | st.sampled_from(['","', "a", "b", "[1]", "é"])
entries = st.lists(
    st.tuples(names, st.lists(st.integers(0, 12), max_size=3).map(tuple)), max_size=3, unique_by=lambda e: e[0]
)


@settings(deadline=None)
@given(entries, entries, st.sampled_from(["float32", "float16"]), st.sampled_from(["float32", "float16"]))
def test_unlike_layouts_have_unlike_digests(one: Any, other: Any, wire: Any, other_wire: Any) -> None:
    first, second = Layout(entries=tuple(one), wire=wire), Layout(entries=tuple(other), wire=other_wire)
    assert (first.digest == second.digest) == (first == second)


# --- bytes from elsewhere ------------------------------------------------------------------------------------------


def test_the_good_record_of_these_tests_is_taken() -> None:
    assert from_arrays(record(), LAYOUT)["bias"].tolist() == VALUES["bias"].tolist()
    assert from_arrays(with_bytes(npy(HEADER, VALUES["bias"].tobytes())), LAYOUT)["bias"].shape == (3,)


@pytest.mark.parametrize(
    "change",
    [
        lambda good: {"weight": good["weight"]},
        lambda good: {**good, "more": good["bias"]},
        lambda good: {"bias": good["bias"], "weight": good["weight"]},
        lambda good: {"Weight": good["weight"], "bias": good["bias"]},
        lambda good: {},
    ],
)
def test_other_names_or_another_order_are_refused(change: Callable[[Any], dict[str, Array]]) -> None:
    with pytest.raises(LayoutError, match="names are not those"):
        from_arrays(ArrayRecord(change(dict(to_arrays(VALUES, LAYOUT)))), LAYOUT)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(4, np.float32),
        np.zeros((3, 1), np.float32),
        np.zeros((), np.float32),
        np.zeros(3, np.float16),
        np.zeros(3, np.float64),
        np.zeros(3, np.int32),
        np.zeros(3, ">f4"),
        np.zeros(3, [("a", "<f4")]),
        np.array(["a", "b", "c"]),
        np.zeros(3, "<c8"),
    ],
)
def test_another_shape_or_type_is_refused(value: npt.NDArray[Any]) -> None:
    with pytest.raises(LayoutError, match=r"^parameter bias: has shape"):
        from_arrays(record(bias=Array(value)), LAYOUT)


def test_what_a_record_says_beside_its_bytes_is_not_believed() -> None:
    data = to_arrays(VALUES, LAYOUT)["bias"].data
    lie = Array(dtype="float64", shape=(10**9,), stype="pickle", data=data)
    assert from_arrays(record(bias=lie), LAYOUT)["bias"].tolist() == VALUES["bias"].tolist()
    honest = Array(dtype="float32", shape=(3,), stype="numpy.ndarray", data=Array(np.zeros(4, np.float32)).data)
    with pytest.raises(LayoutError):
        from_arrays(record(bias=honest), LAYOUT)


def test_fortran_order_is_refused_where_it_would_turn_the_values_round() -> None:
    turned = io.BytesIO()
    np.save(turned, np.asfortranarray(VALUES["weight"]))
    with pytest.raises(LayoutError):
        from_arrays(
            record(weight=Array(dtype="float32", shape=(2, 3), stype="numpy.ndarray", data=turned.getvalue())), LAYOUT
        )
    flat = npy(HEADER.replace("False", "True"), VALUES["bias"].tobytes())
    assert from_arrays(with_bytes(flat), LAYOUT)["bias"].tolist() == VALUES["bias"].tolist()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95" + bytes(100),
        npy(HEADER),
        npy(HEADER, bytes(11)),
        npy(HEADER, bytes(13)),
        npy(HEADER, bytes(12), version=(2, 0)),
        npy(HEADER, bytes(12), version=(3, 0)),
        npy(HEADER, bytes(12), version=(255, 255)),
        npy(HEADER, bytes(12), length=65535),
        npy(HEADER, bytes(12), length=3),
        npy(HEADER.ljust(60_000), bytes(12)),
        npy("", bytes(12)),
        npy("{}", bytes(12)),
        npy("[]", bytes(12)),
        npy("(" * 900, bytes(12)),
        npy("{'descr': " + "[" * 400 + "]" * 400 + ", 'fortran_order': False, 'shape': (3,)}", bytes(12)),
        npy("__import__('os').system('true')", bytes(12)),
        npy(HEADER.replace("<f4", "|O"), bytes(12)),
        npy(HEADER.replace("<f4", "<f99"), bytes(12)),
        npy(HEADER.replace("'<f4'", "3"), bytes(12)),
        npy(HEADER.replace("(3,)", "3"), bytes(12)),
        npy(HEADER.replace("(3,)", "(3.0,)"), bytes(12)),
        npy(HEADER.replace("(3,)", "(-3,)"), bytes(12)),
        npy(HEADER.replace("(3,)", "(3L,)"), bytes(11)),
        npy(HEADER.replace("False", "0"), bytes(12)),
        npy(HEADER.replace("}", "'x': 1}"), bytes(12)),
        npy(b"\xff" * 50, bytes(12)),
        npy(b"\x00" * 50, bytes(12)),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
def test_damaged_or_lying_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(LayoutError, match=r"^parameter bias: "):
        from_arrays(with_bytes(data), LAYOUT)


@pytest.mark.parametrize(
    "shape", ["(1000000000000,)", "(10**12,)", f"({10**30},)", "(1000000, 1000000)", "(0x" + "f" * 800 + ",)"]
)
@pytest.mark.parametrize("descr", ["<f4", "|V2000000000"])
def test_a_header_that_claims_much_makes_nobody_allocate_it(shape: str, descr: str) -> None:
    data = npy(HEADER.replace("(3,)", shape).replace("<f4", descr), bytes(12))
    tracemalloc.start()
    try:
        with pytest.raises(LayoutError):
            from_arrays(with_bytes(data), LAYOUT)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_large_layout_and_a_short_content_make_nobody_allocate_it() -> None:
    layout = Layout(entries=(("x", (10**6, 10**6)),), wire="float32")
    data = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }", bytes(12))
    with pytest.raises(LayoutError, match="damaged"):
        from_arrays(ArrayRecord({"x": Array("float32", (1,), "numpy.ndarray", data)}), layout)


good_bytes = npy(HEADER, VALUES["bias"].tobytes())
fragments = st.sampled_from(
    [b"'descr'", b"'shape'", b"(3,)", b"<f4", b"True", b"{", b"}", b"(", b"\n", b",", b"L", b":"]
)
headers = st.lists(fragments | st.binary(max_size=3), max_size=12).map(b"".join)


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.integers(0, len(good_bytes)), st.binary(max_size=4)).map(
            lambda cut: good_bytes[: cut[0]] + cut[1] + good_bytes[cut[0] + len(cut[1]) :]
        ),
        st.tuples(st.integers(0, len(good_bytes)), st.binary(max_size=4)).map(
            lambda cut: good_bytes[: cut[0]] + cut[1]
        ),
        st.tuples(headers, st.binary(max_size=16)).map(lambda made: npy(*made)),
    )
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::SyntaxWarning")
def test_whatever_the_bytes_there_is_an_array_of_the_layout_or_a_layout_error(data: bytes) -> None:
    try:
        found = from_arrays(with_bytes(data), LAYOUT)["bias"]
    except LayoutError:
        return
    assert (found.shape, found.dtype) == ((3,), np.float32)


def test_values_in_one_row_become_named_arrays_in_the_layouts_order() -> None:
    layout = Layout(entries=(("weight", (2, 3)), ("scale", ()), ("bias", (2,))), wire="float32")
    found = unflat(np.arange(9, dtype=np.float32), layout)
    assert {name: value.tolist() for name, value in found.items()} == {
        "weight": [[0, 1, 2], [3, 4, 5]],
        "scale": 6,
        "bias": [7, 8],
    }
    for size in (8, 10):
        with pytest.raises(ValueError, match="don't fill"):
            unflat(np.zeros(size, np.float32), layout)
