"""Scenarios: plans that come with Veil, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import read_plan

_FOLDER = Path(__file__).parent / "scenarios"


def scenario_names() -> tuple[str, ...]:
    """Names of the scenarios, sorted."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def scenario_summary(name: str) -> str:
    """The first line of a scenario's file, which says what it is."""
    return (_FOLDER / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def find_plan(name: str, overrides: Iterable[str] = ()) -> Plan:
    """A plan by scenario name or by path of a TOML file.

    Raises:
        UsageError: neither a scenario nor a file, or the plan is wrong.
    """
    if name in scenario_names():
        return read_plan(_FOLDER / f"{name}.toml", overrides, where=name)
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        return read_plan(path, overrides)
    close = difflib.get_close_matches(name, scenario_names(), n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"{name}: no such scenario or plan file{hint} (scenarios: {', '.join(scenario_names())})")
