"""What a sweep goes over: grids, draws, and texts that are neither."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from security.errors import UsageError
from simulations.sweep.space import Axis, parse_axes, parse_axis, points


def test_a_grid_is_every_combination_in_the_order_given() -> None:
    axes = parse_axes(["a.b=1,2", "c=x, y ,z"])
    found = points(axes, samples=None, random=False, seed=7)
    assert found == [(("a.b", a), ("c", c)) for a in ("1", "2") for c in ("x", "y", "z")]


def test_a_comma_within_brackets_or_quotes_is_a_values_own() -> None:
    axis = parse_axis("model.options.hidden=[32,16], [64], 'a,b', {x = [1, 2]}")
    assert axis.values == ("[32,16]", "[64]", "'a,b'", "{x = [1, 2]}")


def test_the_same_seed_draws_the_same_points_and_another_others() -> None:
    axes = parse_axes(["training.learning_rate=log:1e-3..1", "training.steps=int:1..10", "model.name=cnn,mlp"])
    first = points(axes, samples=12, random=False, seed=7)
    assert points(axes, samples=12, random=False, seed=7) == first
    assert points(axes, samples=12, random=False, seed=8) != first
    assert len(set(first)) == 12


def test_draws_stay_within_their_range_and_whole_numbers_reach_both_ends() -> None:
    axes = (Axis(key="x", kind="log", low=1e-3, high=1.0), Axis(key="n", kind="int", low=1, high=3))
    drawn = points(axes, samples=300, random=False, seed=1)
    assert all(1e-3 <= float(dict(point)["x"]) <= 1.0 for point in drawn)
    assert {dict(point)["n"] for point in drawn} == {"1", "2", "3"}


def test_equal_ratios_are_equally_likely() -> None:
    """By Kolmogorov and Smirnov's test: one false alarm in 10^6 seeds, and the seed is fixed."""
    drawn = points(parse_axes(["x=log:1e-4..1"]), samples=1000, random=False, seed=3)
    places = [math.log10(float(dict(point)["x"])) / 4 + 1 for point in drawn]
    assert stats.kstest(places, "uniform").pvalue > 1e-6
    plain = [float(dict(point)["x"]) for point in drawn]
    assert stats.kstest(plain, "uniform").pvalue < 1e-6  # the test could have told


def test_a_small_space_has_no_more_points_than_it_has() -> None:
    found = points(parse_axes(["a=1,2", "b=x,y"]), samples=50, random=True, seed=7)
    assert sorted(found) == sorted((("a", a), ("b", b)) for a in "12" for b in "xy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training.learning_rate", "give KEY=VALUE,VALUE"),
        ("=1,2", "give KEY=VALUE,VALUE"),
        ("a=", "give KEY=VALUE,VALUE"),
        ("a=1,,2", "a value is missing between two commas"),
        ("a=1,2,1", "1 is there twice; keep one"),
        ("a=log:0..1", "equal ratios need a LOW above 0"),
        ("a=log:1..1", "the range is empty"),
        ("a=uniform:0..inf", "the range is empty"),
        ("a=uniform:0-1", "give the range as uniform:LOW..HIGH"),
        ("a=int:1.5..3", "give the range as int:LOW..HIGH"),
    ],
)
def test_what_is_no_axis_is_told_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        parse_axis(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "samples", "random", "said"),
    [
        (["a=log:1e-3..1"], None, False, "give --samples N"),
        (["a=1,2"], None, True, "give --samples N"),
        (["a=1,2"], 3, False, "--samples draws points"),
        ([f"a={','.join(map(str, range(50)))}", f"b={','.join(map(str, range(50)))}"], None, False, "2500 trials"),
    ],
)
def test_draws_need_their_number_and_a_number_needs_draws(
    texts: list[str], samples: int | None, random: bool, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        points(parse_axes(texts), samples=samples, random=random, seed=7)


def test_a_key_stands_once() -> None:
    with pytest.raises(UsageError, match="--over a: is there twice"):
        parse_axes(["a=1,2", "a=3"])
    with pytest.raises(UsageError, match="a sweep goes over something"):
        parse_axes([])
