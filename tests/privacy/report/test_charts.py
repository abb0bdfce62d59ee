"""Charts: round ticks within their axis, places where the values are."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.report.charts import svg
from privacy.report.charts.bars import budget_bar
from privacy.report.charts.svg import Scale


@given(low=st.floats(-1e3, 1e3), length=st.floats(1e-3, 1e4), most=st.integers(3, 9))
def test_ticks_are_round_and_inside(low: float, length: float, most: int) -> None:
    found = svg.ticks(low, low + length, most)
    assert 2 <= len(found) + 1 <= most + 2
    assert all(low - 1e-6 * length <= one <= low + length * (1 + 1e-6) for one in found)
    steps = {round(b - a, 9) for a, b in pairwise(found)}
    assert len(steps) <= 1 or max(steps) - min(steps) < 1e-6


@given(low=st.integers(0, 5), length=st.integers(0, 2000))
def test_rounds_have_whole_ticks(low: int, length: int) -> None:
    assert all(one == int(one) for one in svg.whole_ticks(low, low + length, 6))


def test_powers_of_ten_are_thinned() -> None:
    assert svg.powers(1e-10, 0.1, 5) == pytest.approx([1e-10, 1e-8, 1e-6, 1e-4, 1e-2])
    assert svg.powers(0.33, 24, 8) == pytest.approx([0.5, 1, 2, 5, 10, 20])
    assert svg.powers(2.5, 4, 8) == []


def test_a_scale_ends_where_it_ends() -> None:
    linear = Scale(low=2.0, high=4.0, start=10.0, end=110.0)
    logarithmic = Scale(low=1e-6, high=1e-2, start=0.0, end=4.0, log=True)
    assert [linear(2.0), linear(3.0), linear(4.0)] == [10.0, 60.0, 110.0]
    assert logarithmic(1e-3) == pytest.approx(3.0)
    assert math.isfinite(Scale(low=1.0, high=1.0, start=0.0, end=1.0)(1.0))


def test_attributes_are_escaped() -> None:
    assert svg.element("g", aria_label='"><script>') == '<g aria-label="&#34;&gt;&lt;script&gt;"/>'
    assert "&lt;b&gt;" in svg.text("<b>", 0, 0)


@pytest.mark.parametrize(("spent", "broken", "outlined"), [(1.0, False, False), (1.0, True, True), (None, False, True)])
def test_a_bar_without_a_claim_is_an_outline(spent: float | None, broken: bool, outlined: bool) -> None:
    assert ("stroke-dasharray" in budget_bar(spent, 2.0, 2.0, broken=broken)) is outlined
