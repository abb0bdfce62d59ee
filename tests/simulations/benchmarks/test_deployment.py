"""What is read from the logs of a federation whose rounds are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from server.run_folder import RunFolder
from simulations.benchmarks.deployment import Rounds
from simulations.deployment.pilot import Pilot

OTHER, OWN = "a" * 64, "b" * 64


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def answered(number: int, kind: str, seconds: float) -> dict[str, Any]:
    return {"event": "answered", "round": number, "kind": kind, "seconds": seconds}


def test_each_round_is_as_long_as_its_slowest_site_and_other_plans_count_for_nothing(tmp_path: Path) -> None:
    pilot = Pilot(folder=tmp_path, sites=("north", "south"), port=1)
    for site, seconds in (("north", 0.25), ("south", 0.5)):
        lines = [
            {"event": "offer", "digest": OTHER},
            answered(1, "train", 9.0),
            {"event": "offer", "digest": OWN},
            answered(1, "query.secure_keys", 0.125),
            answered(1, "train", seconds),
            answered(1, "query.secure_unmask", seconds),
            answered(2, "train", 2 * seconds),
            {"event": "answered", "kind": "query.statement", "seconds": 5.0},
        ]
        write_lines(pilot.site(site).log, lines)
    run = RunFolder(tmp_path / "run")
    metrics = [
        {"round": 1, "seconds": 2.0, "bytes_down": 10, "bytes_up": 20, "updates": 2},
        {"round": 2, "seconds": 3.0, "bytes_down": 30, "bytes_up": 20, "updates": 1},
    ]
    write_lines(run.metrics, metrics)
    found = Rounds.of(pilot, [run], [OWN])
    assert (found.whole, found.training, found.short) == ((2.0, 3.0), (0.5, 1.0), (0.625, 0.0))
    assert (found.down, found.up, found.fewest) == (20, 20, 1)
    assert found.text().split() == ["2.500", "3.000", "0.750", "1.000", "1.750", "2.000", "0.312", "0.625"]
