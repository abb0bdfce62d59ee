"""`veil audit` on the command line: one line for wrong usage, a calm table, exit code 1 for a broken claim alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import simulations.audit.audit as audits
from security.errors import RunError
from tests.veil.test_main import run

SMALL = [
    *("--set", "model.name=mlp", "--set", "model.options.hidden=[8]", "--set", "federation.rounds=2"),
    *("--set", "training.steps=1", "--set", "evaluation.where=none", "--canaries", "50", "--mislabelled", "0"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit"], "digit: no such scenario or plan file; did you mean digits?"),
        (["digits-plain"], "privacy.trust = 'none' claims nothing, so there is nothing to audit"),
        (["digits", "--canaries", "0", "--mislabelled", "0", "--rounds", "0"], "nothing was asked for"),
        (["digits", "--set", "training.lerning_rate=1"], "did you mean"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_made(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("audit", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_people_and_json_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("audit", "digits", *SMALL, "--rounds", "0", "--out", "one") == 0
    shown = capsys.readouterr()
    assert "a run with 50 planted gradients" in shown.err
    assert "planted gradients" in shown.out
    assert "uninformative" in shown.out
    assert "BROKEN" not in shown.out
    assert run("audit", "one", "--rounds", "10", "--canaries", "0", "--mislabelled", "0", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["findings"]] == ["many-runs", "trade-off"]
    assert json.loads(Path("one/audit.json").read_text()) == found, "an audit of a run lies in the run's folder"


def test_a_plan_may_name_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\n\ndef net(form):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, form.classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    plan = ["digits", "--model", "own=mine.py:net", "--set", "model.name=own", "--set", "federation.rounds=1"]
    assert run("audit", *plan, "--canaries", "50", "--mislabelled", "10", "--rounds", "4", "--out", "x") == 0


def test_what_was_found_without_a_run_is_kept_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone: list[Any] = ["digits", *SMALL, "--canaries", "0", "--rounds", "4", "--out", str(tmp_path / "x")]
    assert run("audit", *alone) == 0
    assert [row["way"] for row in json.loads((tmp_path / "x/audit.json").read_text())["findings"]] == ["round", "round"]
    assert len(max(capsys.readouterr().out.splitlines(), key=len)) <= 130
    (tmp_path / "x/plan.toml").write_text("")
    assert run("audit", *alone) == 2
    assert "holds a run" in capsys.readouterr().err


def test_a_broken_claim_is_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = audits.of_one_round
    monkeypatch.setattr(audits, "of_one_round", lambda *a, **b: [replace(one, epsilon=99.0) for one in whole(*a, **b)])
    plan: list[Any] = ["digits", *SMALL, "--canaries", "0", "--rounds", "4", "--out", str(tmp_path / "x")]
    assert run("audit", *plan) == 1
    assert "BROKEN: more leaks than is claimed" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RunError("the model has diverged"), ZeroDivisionError("a defect")])
def test_an_audit_that_failed_is_never_taken_for_a_broken_claim(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(audits, "play_with_canaries", fail)
    given: list[Any] = ["digits", *SMALL, "--rounds", "0", "--out", str(tmp_path / "x")]
    assert run("audit", *given) == 4
    (*_, last) = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert str(error) in last
