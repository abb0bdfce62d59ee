"""The study of audits: each mode has its row, finished audits are kept, and a broken claim is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulations.audit.audit import Options
from simulations.studies import audits
from simulations.studies.audits import ROWS, Kept, Row, play, report

FINDING: dict[str, Any] = {
    "looked_for": "gradients",
    "way": "coordinate",
    "method": "trade-off",
    "trust": "local",
    "claim": "run",
    "epsilon": 2.25,
    "claimed": 8.0,
    "delta": 1e-5,
    "alpha": 1e-4,
    "power": 8.16,
    "trials": 5000,
    "guesses": 409,
    "correct": 385,
    "contradicted": False,
    "verdict": "consistent",
}


@pytest.mark.parametrize("data", ["digits", "fashion"])
def test_every_mode_has_a_row(data: str) -> None:
    plans = [row.plan() for row in ROWS if row.name.startswith(data)]
    assert {plan.privacy.trust for plan in plans} == {"local", "distributed", "central"}
    assert {plan.privacy.unit for plan in plans} == {"example", "client"}


def test_names_are_the_rows_own_and_say_what_was_changed() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        plan, mode = row.plan(), row.name.split(", ")
        assert mode[1] == plan.privacy.trust
        assert mode[2].split()[-1] == {"example": "records", "client": "clients"}[plan.privacy.unit]
        if mode[3:]:
            assert mode[3] == f"epsilon {plan.privacy.epsilon:g}"


def test_the_table_tells_what_is_broken() -> None:
    broken = {**FINDING, "epsilon": 9.0, "verdict": "broken"}
    estimate = {**FINDING, "method": "one-shot", "guesses": 0, "epsilon": 11.0}
    membership = {"shadow_models": 16, "records": 200, "area": 0.512, "found_at_1_percent": 0.02}
    kept = [
        Kept(name="digits, local, records", digest="", audit={"findings": [FINDING, broken], "membership": membership}),
        Kept(name="fashion, central, clients", digest="", audit={"findings": [estimate], "membership": None}),
    ]
    text = report(kept)
    assert "2 consistent, 1 broken, 0 uninformative" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "gradients coordinate trade-off 8.00 2.25 8.16 385/409 consistent" in lines
    assert "gradients coordinate trade-off 8.00 9.00 8.16 385/409 broken" in lines
    assert "gradients coordinate one-shot 8.00 ~11.00 8.16 consistent" in lines
    assert "membership by 16 shadow models, 200 records: area 0.512, finds 2.0% at 1 % false alarms" in lines


def test_finished_audits_are_not_played_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("model.name=linear", "federation.rounds=1", "training.steps=1", "evaluation.where=none")
    row = Row(name="one", scenario="digits", changes=small, rounds=4)
    monkeypatch.setattr(audits, "Options", lambda **given: Options(**given, canaries=20, mislabelled=0))
    (first,) = play([row], tmp_path, processes=1)
    assert [one["method"] for one in first.audit["findings"]] == [
        "epsilon-delta",
        "trade-off",
        "many-runs",
        "trade-off",
    ]
    monkeypatch.setattr(audits, "audit", lambda *_, **__: pytest.fail("played again"))
    assert play([row], tmp_path, processes=1) == [first]
