"""The same from Python."""

from __future__ import annotations

from pathlib import Path

import pytest

import veil
from veil import Plan, Repeated, RunError, UsageError, load_run, repeat, simulate

SMALL = ("model.name=mlp", "training.steps=1", "federation.rounds=1", "privacy.trust=none")


def test_everything_that_is_promised_is_there() -> None:
    assert set(veil.__all__) == set(dir(veil)) == set(veil._HOMES)
    for name in veil.__all__:
        assert getattr(veil, name).__module__ == veil._HOMES[name]


def test_a_run_is_simulated_and_read_back(tmp_path: Path) -> None:
    run = simulate(Plan.load("digits", SMALL), out=tmp_path / "run", engine="inline")
    assert list(run.metrics.index) == [1]
    assert load_run(tmp_path / "run").summary == run.summary


def test_a_plan_is_repeated_over_seeds(tmp_path: Path) -> None:
    repeated = repeat(Plan.load("digits", SMALL), 2, out=tmp_path / "runs", engine="inline")
    assert isinstance(repeated, Repeated)
    finals = [load_run(tmp_path / "runs" / f"seed-{seed}").summary["final"]["accuracy"] for seed in (7, 8)]
    assert repeated.values["accuracy"] == tuple(finals)
    assert repeated.mean("accuracy") == sum(finals) / 2
    with pytest.raises(UsageError, match="give 2 or more"):
        repeat(Plan.load("digits", SMALL), 1)


def test_a_failed_run_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.app.train_in_company", lambda *_, **__: 1 / 0)
    with pytest.raises(RunError, match=r"run: round 1: 0 good updates .*\(client-failed\); clients\.log says where"):
        simulate(Plan.load("digits", SMALL), out=tmp_path / "run", engine="inline")
    assert "ZeroDivisionError at " in (tmp_path / "run" / "clients.log").read_text()
