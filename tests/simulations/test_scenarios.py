"""Scenarios: every one of them is a plan that can run."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.errors import UsageError
from shared_models.resolve import resolve
from simulations.scenarios import find_plan, scenario_names, scenario_summary


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_resolves_and_says_what_it_is(name: str) -> None:
    plan = resolve(find_plan(name))
    assert plan.name == name
    assert len(scenario_summary(name)) > 20
    assert plan.is_private == (not name.endswith("-plain"))


def test_each_private_scenario_has_a_plain_one_beside_it() -> None:
    names = set(scenario_names())
    assert {"digits", "fashion", "hospitals"} <= names
    assert {name for name in names if not name.endswith("-plain")} == {
        name.removesuffix("-plain") for name in names if name.endswith("-plain")
    }


def test_a_plan_file_is_found_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\n')
    assert find_plan(str(path), ["seed=9"]).seed == 9


def test_an_unknown_scenario_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"^hospital: no such scenario or plan file; did you mean hospitals\?"):
        find_plan("hospital")
