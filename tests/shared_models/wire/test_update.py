"""An update on its way: what an observer sees of its form follows from the layout alone, whatever the form is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from shared_models.parameters import Layout, Parameters, from_arrays, to_arrays, wire_bytes
from shared_models.wire import decode_update, encode_update, leaves_out, update_arrays

ENTRIES = (("weight", (20, 30)), ("bias", (20,)), ("scale", ()))
LAYOUTS = [
    Layout(entries=ENTRIES, wire="float32"),
    Layout(entries=ENTRIES, wire="float16"),
    Layout(entries=ENTRIES, wire="int8"),
    Layout(entries=ENTRIES, wire="top-k", top_fraction=0.05),
]
every_form = pytest.mark.parametrize("layout", LAYOUTS, ids=[layout.wire for layout in LAYOUTS])


def update(seed: int, size: float = 1.0) -> Parameters:
    generator = np.random.default_rng(seed)
    return {name: np.asarray(generator.normal(0, size, shape), np.float32) for name, shape in ENTRIES}


@every_form
def test_it_comes_through_flowers_protobuf_as_it_was(layout: Layout) -> None:
    sent = encode_update(update(1), layout, seed=1)
    assert tuple(sent) == update_arrays(layout)
    there = recorddict_from_proto(recorddict_to_proto(RecordDict({"arrays": sent}))).array_records["arrays"]
    found, expected = decode_update(there, layout), decode_update(sent, layout)
    for name, shape in ENTRIES:
        assert (found[name].dtype, found[name].shape) == (np.float32, shape)
        assert found[name].tobytes() == expected[name].tobytes()
        if found[name].flags.writeable:
            found[name][...] = 0  # a copy of its own
        assert decode_update(there, layout)[name].tobytes() == expected[name].tobytes()


@every_form
def test_its_form_does_not_depend_on_its_values(layout: Layout) -> None:
    """Rule 5: names, types, shapes and lengths are the same, whatever was trained."""
    forms = set()
    for values in (update(1), update(2, 1e30), update(3, 0.0), {n: np.full(s, np.nan, np.float32) for n, s in ENTRIES}):
        sent = encode_update(values, layout, seed=1)
        forms.add(tuple((name, a.dtype, tuple(a.shape), a.stype, len(a.data)) for name, a in sent.items()))
    assert len(forms) == 1


@every_form
def test_what_is_not_finite_arrives_so(layout: Layout) -> None:
    for bad in (np.nan, np.inf):
        values = update(1)
        values["bias"][7] = bad
        with np.errstate(all="raise"):  # and nobody is warned on the way
            found = decode_update(encode_update(values, layout, seed=1), layout)
        assert not np.isfinite(found["bias"][7])


@every_form
def test_the_model_goes_down_as_it_is_but_for_float16(layout: Layout) -> None:
    model = update(1)
    found = from_arrays(to_arrays(model, layout), layout)
    exact = all(np.array_equal(found[name], model[name]) for name in model)
    assert exact == (layout.wire != "float16")


def test_each_form_is_smaller_than_the_one_before() -> None:
    entries = (("x", (200, 500)),)
    values: Any = {"x": np.random.default_rng(1).normal(size=(200, 500)).astype(np.float32)}
    forms: list[tuple[Any, float | None]] = [("float32", None), ("float16", None), ("int8", None), ("top-k", 0.05)]
    sizes = [wire_bytes(encode_update(values, Layout(entries, *form), seed=1)) for form in forms]
    assert sizes == [400_128, 200_128, 100_000 + 4 + 256, 5000 * 8 + 256]


def test_top_k_alone_leaves_something_for_the_next_update() -> None:
    assert [leaves_out(layout) for layout in LAYOUTS] == [False, False, False, True]
