"""The mean of updates is exact, and the same to the last bit whatever the order (principle 4)."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import reduce
from server.reduce import ExactMean, ReduceError

Terms = list[tuple[list[float], int]]

# Every float32 that the accumulator holds exactly: zero, or from 2^-17 to 2^11 (times 2^29, the largest weight: 2^40).
exact_values = st.floats(min_value=2.0**-17, max_value=2.0**11, width=32).flatmap(
    lambda value: st.sampled_from([value, -value])
) | st.just(0.0)
# Small ones fit into 2^20 with all others, large ones need the high part; some are on either side.
weights = st.integers(1, 1000) | st.integers(2**20, 2**24)
tiny_values = st.floats(min_value=-(2.0**-17), max_value=2.0**-17, width=32)
terms = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.tuples(st.lists(exact_values, min_size=width, max_size=width), weights), min_size=1, max_size=12
    )
)


def mean_of(updates: Sequence[tuple[Sequence[float], int]]) -> np.ndarray:
    mean = ExactMean()
    for values, weight in updates:
        mean.add({"w": np.array(values, dtype=np.float32)}, weight)
    return mean.result()["w"]


def nearest_float32(value: Fraction) -> np.float32:
    """The float32 nearest to a fraction, ties to even: found among neighbours, with no rounding on the way."""
    guess = np.float32(float(value))
    candidates = [np.nextafter(guess, np.float32(-np.inf)), guess, np.nextafter(guess, np.float32(np.inf))]
    return min(candidates, key=lambda c: (abs(Fraction(float(c)) - value), int(c.view(np.uint32)) % 2))


def brute_force(updates: Sequence[tuple[Sequence[float], int]]) -> np.ndarray:
    total = sum(weight for _, weight in updates)
    columns = zip(*(values for values, _ in updates), strict=True)
    sums = [
        sum((Fraction(value) * weight for value, (_, weight) in zip(column, updates, strict=True)), Fraction())
        for column in columns
    ]
    return np.array([nearest_float32(value / total) for value in sums], dtype=np.float32)


def held(mean: ExactMean) -> dict[str, list[int]]:
    """The sums that a partial mean holds, in units: whole numbers, in however many parts they lie."""
    return {
        name: [
            int(units) + (int(mean._high[name].reshape(-1)[i]) << reduce._BITS if name in mean._high else 0)
            for i, units in enumerate(low.reshape(-1))
        ]
        for name, low in mean._low.items()
    }


# --- exactness ----------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(terms)
def test_the_mean_is_that_of_fractions_to_the_last_bit(updates: Terms) -> None:
    assert mean_of(updates).tolist() == brute_force(updates).tolist()


@settings(max_examples=200, deadline=None)
@given(st.lists(exact_values.map(lambda value: ([value], 1)), min_size=1, max_size=40))
def test_equal_weights_too(updates: Terms) -> None:
    assert mean_of(updates).tolist() == brute_force(updates).tolist()


def test_small_negative_sums_too() -> None:
    """Found by a random test: less its floor, such a number was rounded before it was compared."""
    updates = [([0.0], 62), ([-(2.0**-40)], 1)]
    assert mean_of(updates).tolist() == brute_force(updates).tolist()


def test_it_is_rounded_once() -> None:
    """2^20 + 2^-4 + 2^-36 lies just above the middle of two float32s; as a float64 it would lie on the middle."""
    for up in (1.0, 2.0**-3):  # with a high part, and without
        updates = [([up * 2.0**22], 1), ([up * 2.0**-2], 1), ([up * 2.0**-34], 1), ([0.0], 1)]
        assert mean_of(updates).tolist() == [up * (2.0**20 + 2.0**-3)]
        below = [([up * 2.0**22], 1), ([up * (2.0**-2 + 2.0**0)], 1), ([up * -(2.0**-34)], 1), ([0.0], 1)]
        assert mean_of(below).tolist() == brute_force(below).tolist()


def test_a_mean_on_the_middle_of_two_float32s_goes_to_the_even_one() -> None:
    one_up, two_up = 1 + 2.0**-23, 1 + 2.0**-22
    assert mean_of([([1.0], 1), ([one_up], 1)]).tolist() == [1.0]
    assert mean_of([([one_up], 1), ([two_up], 1)]).tolist() == [two_up]


def test_what_cancels_leaves_nothing_behind() -> None:
    assert mean_of([([2.0**30], 1), ([2.0**-40], 1), ([-(2.0**30)], 1)]).tolist() == [np.float32(2.0**-40 / 3)]


@pytest.mark.parametrize("value", [2.0**-41, 1.3 * 2.0**-38, 2.0**-80, float(np.finfo(np.float32).smallest_subnormal)])
def test_what_is_too_small_to_be_held_is_off_by_no_more_than_half_a_unit(value: float) -> None:
    assert abs(float(mean_of([([value], 1)])[0]) - value) <= 2.0**-41
    assert mean_of([([-value], 1), ([value], 1)]).tolist() == pytest.approx([0.0], abs=2.0**-41)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(tiny_values, min_size=1, max_size=1), weights), min_size=1, max_size=12))
def test_the_mean_of_small_values_is_off_by_half_a_unit_over_the_mean_weight(updates: Terms) -> None:
    total = sum(weight for _, weight in updates)
    true = sum((Fraction(values[0]) * weight for values, weight in updates), Fraction()) / total
    error = abs(Fraction(float(mean_of(updates)[0])) - true)
    assert error <= Fraction(len(updates), total) * Fraction(1, 2**41) + abs(true) / 2**24


def test_the_largest_values_and_weights_are_held() -> None:
    assert mean_of([([2.0**40], 1), ([-(2.0**40)], 1), ([1.0], 1)]).tolist() == [np.float32(1 / 3)]
    assert mean_of([([2.0**11], 2**29), ([-(2.0**11)], 2**29)]).tolist() == [0.0]
    assert mean_of([([3.0], 2**29)]).tolist() == [3.0]


def test_weights_count() -> None:
    assert mean_of([([1.0, -8.0], 3), ([5.0, 0.0], 1)]).tolist() == [2.0, -6.0]


def test_an_array_without_axes_is_averaged_like_any_other() -> None:
    mean = ExactMean()
    for value in (1.0, 2.0):
        mean.add({"scale": np.array(value, dtype=np.float32), "none": np.zeros((0, 3), dtype=np.float32)})
    found = mean.result()
    assert found["scale"].shape == ()
    assert found["scale"] == np.float32(1.5)
    assert found["none"].shape == (0, 3)
    assert all(value.dtype == np.float32 for value in found.values())


def test_sixteen_bit_updates_are_averaged_as_the_numbers_they_are() -> None:
    values = np.array([0.1, 65504.0, -6e-8], dtype=np.float16)
    mean = ExactMean()
    mean.add({"w": values})
    mean.add({"w": np.zeros(3, dtype=np.float16)})
    assert mean.result()["w"].tolist() == (values.astype(np.float32) / 2).tolist()


# --- order --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(terms.flatmap(lambda updates: st.tuples(st.just(updates), st.permutations(updates))))
def test_any_order_gives_the_same_bits(both: tuple[Terms, Terms]) -> None:
    given_order, other_order = both
    assert mean_of(given_order).tobytes() == mean_of(other_order).tobytes()


# Values of any size that float32 has, below the limit: sums that the accumulator must round are equal too.
any_values = st.floats(min_value=-(2.0**39), max_value=2.0**39, width=32)
trees = st.recursive(any_values, lambda children: st.tuples(children, children), max_leaves=16)


@settings(max_examples=150, deadline=None)
@given(trees, st.randoms(use_true_random=False))
def test_any_tree_of_merges_gives_the_same_bits(tree: object, random: object) -> None:
    leaves: list[float] = []

    def merged(node: object) -> ExactMean:
        if isinstance(node, tuple):
            left, right = (merged(child) for child in node)
            left.merge(right)
            return left
        mean = ExactMean()
        assert isinstance(node, float)
        mean.add({"w": np.array([node], dtype=np.float32)})
        leaves.append(node)
        return mean

    as_tree = merged(tree)
    random.shuffle(leaves)  # type: ignore[attr-defined]
    in_line = ExactMean()
    for leaf in leaves:
        in_line.add({"w": np.array([leaf], dtype=np.float32)})
    assert held(as_tree) == held(in_line)
    assert as_tree.count == in_line.count == len(leaves)
    assert as_tree.result()["w"].tobytes() == in_line.result()["w"].tobytes()


def test_a_merged_part_keeps_its_own_value() -> None:
    part, whole = ExactMean(), ExactMean()
    part.add({"w": np.array([2.0], dtype=np.float32)})
    whole.merge(part)
    whole.add({"w": np.array([4.0], dtype=np.float32)})
    assert whole.result()["w"].tolist() == [3.0]
    assert part.result()["w"].tolist() == [2.0]


def test_what_the_caller_does_to_an_update_afterwards_changes_nothing() -> None:
    value = np.array([1.0], dtype=np.float32)
    mean = ExactMean()
    mean.add({"w": value})
    value[0] = 99.0
    assert mean.result()["w"].tolist() == [1.0]


# --- many terms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 3.0, 40.0])
def test_the_sum_is_the_same_in_eight_bytes_and_in_twelve(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    """From the first update on, or from a later one."""
    generator = np.random.default_rng(0)
    updates = [(generator.standard_normal(5).astype(np.float32), 1 + i % 3) for i in range(50)]
    narrow, wide = ExactMean(), ExactMean()
    for values, weight in updates:
        narrow.add({"w": values}, weight)
    monkeypatch.setattr(reduce, "_LOW_LIMIT", limit)
    for values, weight in updates:
        wide.add({"w": values}, weight)
    assert not narrow._high
    assert wide._high.keys() == {"w"}
    assert held(wide) == held(narrow)
    assert wide.result()["w"].tobytes() == narrow.result()["w"].tobytes()


def test_the_high_part_comes_before_the_low_one_is_full() -> None:
    """2^60 units and what rounding adds; a low part holds 2^63."""
    mean = ExactMean()
    for count in range(1, 7):
        mean.add({"w": np.array([2.0**18, -(2.0**18)], dtype=np.float32), "small": np.ones(1, np.float32)})
        assert mean._high.keys() == ({"w"} if count > 4 else set())
        assert np.abs(mean._low["w"]).max() <= 2**60
        assert held(mean) == {"w": [count * 2**58, -count * 2**58], "small": [count * 2**40]}
    assert reduce._LOW_LIMIT * reduce._UNITS <= 2 ** (reduce._BITS - 1)
    assert reduce._LIMIT * reduce._UNITS / reduce._HIGH <= 2**30


JUST_BELOW_ZERO = {"w": np.array([-(2.0**-40)], dtype=np.float32)}


def test_a_small_negative_sum_in_two_parts_is_not_rounded_away() -> None:
    mean = ExactMean()
    for value in (2.0**40, -(2.0**40)):
        mean.add({"w": np.array([value], dtype=np.float32)})
    mean.add(JUST_BELOW_ZERO)
    assert held(mean) == {"w": [-1]}
    assert mean.result()["w"].tolist() == [np.float32(-(2.0**-40) / 3)]


def test_means_in_one_part_and_in_two_are_merged() -> None:
    large, small = 2.0**30, 2.0**-40
    for first, second in ((large, small), (small, large), (large, large)):
        left, right = ExactMean(), ExactMean()
        left.add({"w": np.array([first], dtype=np.float32)})
        right.add({"w": np.array([second], dtype=np.float32)})
        left.merge(right)
        assert held(left) == {"w": [int(first * 2**40) + int(second * 2**40)]}
        assert held(right) == {"w": [int(second * 2**40)]}


def test_arrays_of_many_chunks_and_of_no_values_are_averaged_value_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    shapes = {"many": (7, 11), "one": (), "none": (0, 3), "wide": (5,)}
    updates = [
        ({name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}, weight)
        for weight in (1, 3, 2)
    ]
    found = []
    for size in (1 << 20, 4):
        monkeypatch.setattr(reduce, "_CHUNK", size)
        mean = ExactMean()
        for update, weight in updates:
            mean.add({name: np.array(value, order="F") for name, value in update.items()}, weight)
        found.append(mean.result())
    for name, shape in shapes.items():
        expected = sum(update[name].astype(np.float64) * weight for update, weight in updates) / 6  # type: ignore[misc]
        assert found[0][name].shape == found[1][name].shape == shape
        assert np.array_equal(found[0][name], found[1][name])
        assert np.allclose(found[0][name], expected, rtol=1e-6, atol=0)


def test_an_update_is_folded_in_without_a_copy_of_it() -> None:
    update = {"w": np.ones(1_000_000, np.float32)}  # 4 MB
    mean = ExactMean()
    mean.add(update)
    tracemalloc.start()
    mean.add(update)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1_000_000


def test_memory_is_eight_bytes_a_value_whatever_the_number_of_updates() -> None:
    def size(mean: ExactMean) -> int:
        return sum(value.nbytes for part in (mean._high, mean._low) for value in part.values())

    mean = ExactMean()
    for _ in range(40):
        mean.add({"w": np.full(1000, 0.5, dtype=np.float32)}, 500)
        assert size(mean) == 8000
    mean.add({"w": np.full(1000, 2.0**20, dtype=np.float32)})
    assert size(mean) == 12000


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**41, -(2.0**41), 3.4e38])
def test_a_value_that_cant_be_held_is_refused_and_nothing_is_changed(bad: float) -> None:
    mean = ExactMean()
    good = {"a": np.array([1.0, 2.0], dtype=np.float32), "b": np.array([3.0], dtype=np.float32)}
    mean.add(good)
    before = held(mean)
    with pytest.raises(ReduceError, match="b: not finite, or too large"):
        mean.add({"a": np.array([7.0, 7.0], dtype=np.float32), "b": np.array([bad], dtype=np.float32)})
    assert held(mean) == before
    assert mean.count == 1
    assert mean.result()["a"].tolist() == [1.0, 2.0]


def test_the_first_update_may_be_refused_too() -> None:
    mean = ExactMean()
    with pytest.raises(ReduceError):
        mean.add({"w": np.array([np.nan], dtype=np.float32)})
    assert mean.count == 0
    mean.add({"other": np.array([1.0], dtype=np.float32)})
    assert mean.result()["other"].tolist() == [1.0]


def test_one_huge_update_leaves_room_for_the_others() -> None:
    """Were the limit one on the sum alone, a client that answers first could have every other one refused."""
    honest = ([1.0], 1)
    huge = ([2.0**40], 1)
    for order in ([huge, honest, honest], [honest, honest, huge]):
        mean = ExactMean()
        for values, weight in order:
            mean.add({"w": np.array(values, dtype=np.float32)}, weight)
        assert mean.count == 3


def test_a_sum_that_could_overflow_is_refused() -> None:
    mean = ExactMean()
    largest = {"w": np.array([2.0**40], dtype=np.float32)}
    for _ in range(2**10):
        mean.add(largest)
    with pytest.raises(ReduceError):
        mean.add(largest)
    assert mean.count == 2**10
    assert mean.result()["w"].tolist() == [2.0**40]
    other = ExactMean()
    other.add(largest)
    with pytest.raises(ReduceError, match="two partial means"):
        mean.merge(other)
    assert mean.count == 2**10


@pytest.mark.parametrize("weight", [0, -1, 2**29 + 1, 1.5, True, float("nan"), "3"])
def test_a_weight_that_is_no_whole_number_from_1_to_2_to_the_29_is_refused(weight: object) -> None:
    mean = ExactMean()
    with pytest.raises(ReduceError, match="weight"):
        mean.add({"w": np.array([1.0], dtype=np.float32)}, weight)  # type: ignore[arg-type]
    assert mean.count == 0


@pytest.mark.parametrize(
    "other",
    [{"v": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)}, {}, {"w": np.zeros((2, 1), np.float32)}],
    ids=["name", "length", "nothing", "axes"],
)
def test_other_names_or_shapes_are_refused(other: dict[str, np.ndarray]) -> None:
    mean = ExactMean()
    mean.add({"w": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="names or shapes"):
        mean.add(other)
    part = ExactMean()
    part.add(other)
    with pytest.raises(ValueError, match="names or shapes"):
        mean.merge(part)
    assert mean.count == 1
    assert mean.result()["w"].tolist() == [1.0, 1.0]


def test_the_mean_of_nothing_is_no_number() -> None:
    with pytest.raises(ValueError, match="no updates"):
        ExactMean().result()
    empty = ExactMean()
    empty.merge(ExactMean())
    with pytest.raises(ValueError, match="no updates"):
        empty.result()
