"""A model in parts: every value once, none alone, no part too large."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.model_parts import cut_out, parts

shapes = st.lists(st.lists(st.integers(0, 9), max_size=3).map(tuple), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(shapes, st.integers(4, 50))
def test_every_value_is_in_one_part_and_no_part_is_too_large(found: list[tuple[int, ...]], most: int) -> None:
    sizes = [int(np.prod(shape)) for shape in found]
    ends = np.cumsum([0, *sizes])
    model = {str(i): np.arange(ends[i], ends[i + 1], dtype=np.float32).reshape(shape) for i, shape in enumerate(found)}
    seen: list[float] = []
    for part in parts(model, most):
        cut = cut_out(model, part)
        assert sum(value.size for value in cut.values()) <= most
        for name, value in cut.items():
            assert value.shape == model[name].shape if part[name] is None else value.size >= 2
            seen += value.reshape(-1).tolist()
    assert seen == list(range(ends[-1]))


def test_small_arrays_go_together() -> None:
    model = {"a": np.zeros((2, 2), np.float32), "b": np.zeros(3, np.float32), "c": np.zeros((), np.float32)}
    assert list(parts(model, 7)) == [{"a": None, "b": None}, {"c": None}]
    assert list(parts(model, 8)) == [{"a": None, "b": None, "c": None}]


def test_what_is_cut_out_may_be_written_to_the_model() -> None:
    model = {"a": np.zeros((2, 3), np.float32)}
    cut_out(model, {"a": slice(2, 4)})["a"][...] = 5.0
    assert model["a"].tolist() == [[0, 0, 5], [5, 0, 0]]


def test_parts_of_less_than_four_values_are_refused() -> None:
    with pytest.raises(ValueError, match="four is the least"):
        list(parts({"a": np.zeros(3, np.float32)}, 3))
