"""The study of reconstruction: its rounds are what its rows say, are kept, and are told as a table and a picture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from simulations.studies import reconstruction
from simulations.studies.reconstruction import CASES, NONE, PROTECTIONS, cells, picture, play, report

DIGITS = CASES[0]


def test_protections_differ_in_nothing_else() -> None:
    made = {cell.protection: cell for cell in cells([DIGITS])}
    assert list(made) == list(PROTECTIONS)
    for name, cell in made.items():
        plan = cell.plan
        assert plan.federation.rounds == plan.training.local_steps == 1
        assert cell.options.given_labels == (name != NONE)
        expected = "none" if name == NONE else "distributed" if "sum" in name else "local"
        assert plan.privacy.trust == expected
        assert plan.data == made[NONE].plan.data
        assert plan.model == made[NONE].plan.model
        if name != NONE:
            assert name.endswith(f", epsilon {plan.privacy.epsilon:g}")


def test_a_round_is_played_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = dataclasses.replace(
        DIGITS,
        overrides=(*DIGITS.overrides, "data.test_fraction=0.95", "data.partition.clients=60"),
        protections=(NONE, "local DP, epsilon 8"),
        iterations=(30, 30),
        inverted=2,
    )
    results = play(cells([case]), tmp_path)
    assert [one.protection for one in results] == [NONE, "local DP, epsilon 8"]
    monkeypatch.setattr(reconstruction, "_run", None)  # or it would be asked for
    assert play(cells([case]), tmp_path) == results
    table = report(results)
    plain, private = table.splitlines()[1:3]
    assert plain.startswith(NONE)
    assert "100%" in plain
    assert private.startswith("local DP, epsilon 8 ")
    drawn = picture(results, [case])
    assert drawn.count("<image") == sum(2 * len(one.originals) for one in results) >= 8
    assert "no protection" in drawn
