"""The picture of a sweep: a mark for each trial with an epsilon, and the line of those that no other beats."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from simulations.sweep.book import Row, Terms
from simulations.sweep.frontier import write_frontier
from simulations.sweep.space import parse_axes, points
from simulations.sweep.trials import Trial, trials_of

TERMS = Terms(metric="accuracy", larger=True, charge=False, early_stop=False, judged="")


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    asked = points(parse_axes(["privacy.epsilon=1,4,16"]), samples=None, random=False, seed=7)
    return trials_of("digits", ("federation.rounds=3", "training.steps=2"), asked, charge=False)


def rows(trials: list[Trial], *values: float | None) -> list[Row]:
    return [
        Row(name=one.name, settings={}, digest="", value=value, epsilon=one.plan.privacy.epsilon)
        for one, value in zip(trials, values, strict=True)
    ]


def drawn(path: Path) -> dict[str, int]:
    names = [one.tag.rpartition("}")[2] for one in ET.parse(path).iter()]
    return {name: names.count(name) for name in ("circle", "polyline")}


@pytest.mark.parametrize(
    ("values", "lines"),
    [((0.1, 0.5, 0.9), 1), ((0.1, 0.5, 0.2), 1), ((0.9, 0.5, 0.1), 0)],
    ids=["each the best for its epsilon", "one is beaten", "one beats all"],
)
def test_all_trials_are_marked_and_a_line_joins_the_best(
    trials: list[Trial], tmp_path: Path, values: tuple[float, ...], lines: int
) -> None:
    path = tmp_path / "frontier.svg"
    assert write_frontier(path, rows(trials, *values), trials, TERMS)
    assert drawn(path) == {"circle": 3, "polyline": lines}


def test_what_has_no_value_yet_is_not_drawn_and_a_picture_of_nothing_is_taken_away(
    trials: list[Trial], tmp_path: Path
) -> None:
    path = tmp_path / "frontier.svg"
    assert write_frontier(path, rows(trials, 0.1, None, 0.9), trials, TERMS)
    assert drawn(path) == {"circle": 2, "polyline": 1}
    assert not write_frontier(path, rows(trials, None, None, None), trials, TERMS)
    assert not path.exists()
