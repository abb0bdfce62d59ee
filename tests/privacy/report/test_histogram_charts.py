"""The picture of released histograms: every count a bar, whatever the noise and whatever columns are called."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from privacy.report.charts.histograms import Counted, draw_histograms

SVG = "{http://www.w3.org/2000/svg}"
ACCENT = "c-accent-fill"


def drawn(*columns: Counted) -> ElementTree.Element:
    return ElementTree.fromstring(draw_histograms(columns, title="counts"))


def number(counts: list[int], name: str = "age", noise: float = 10.0) -> Counted:
    edges = [10.0 * place for place in range(len(counts))]
    return Counted(name=name, counts=counts, names=["b"] * len(counts), edges=edges, noise=noise)


def bars(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [one for one in root.iter(f"{SVG}rect") if one.get("class") == ACCENT]


@pytest.mark.parametrize("counts", [[5, 900, 30, -7, 2], [0, 0, 0], [-50, -60, -70, 1], [10**9, 1, 0, -(10**9), 3]])
def test_each_bin_of_a_number_is_a_bar_within_its_picture(counts: list[int]) -> None:
    root = drawn(number(counts))
    found = bars(root)
    assert len(found) == len(counts) - 1
    for one in found:
        x, y, width, height = (float(one.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert min(width, height) > 0
        assert 0 <= x <= x + width <= 360
        assert 0 <= y <= y + height <= 190.5
    assert f"missing: {counts[-1]}" in "".join(root.itertext())


def test_of_a_category_the_largest_values_are_named_and_the_rest_counted() -> None:
    one = Counted(name="job", counts=list(range(12)), names=[f"job {i}" for i in range(12)], edges=[], noise=1.0)
    text = "".join(drawn(one).itertext())
    assert "and 3 more" in text
    assert "job 11" in text
    assert "job 2" not in text


def test_names_of_a_strangers_plan_are_text_and_no_markup() -> None:
    evil = "<script>alert(1)</script>&'\""
    root = drawn(
        number([1, 2, 3], name=evil), Counted(name=evil, counts=[1, 2], names=[evil, "b"], edges=[], noise=0.0)
    )
    assert not list(root.iter(f"{SVG}script"))
    assert evil in "".join(root.itertext())
