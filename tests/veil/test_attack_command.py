"""`veil attack` on the command line: one line for wrong usage, a calm table, records only where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.veil.test_main import run

SMALL = [
    *("--set", "data.test_fraction=0.95", "--set", "data.partition={kind='iid',clients=40}"),
    *("--set", "federation.cohort={sampling='fixed',size=3}", "--set", "federation.rounds=2"),
    *("--set", "model.name=mlp", "--set", "model.options={hidden=[16],activation='tanh'}"),
    *("--set", "training.steps=1", "--set", "training.momentum=0", "--set", "training.expected_batch_size=2"),
]
QUICK = ["--iterations", "30"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["digit"], "digit: no such scenario or plan file; did you mean digits?"),
        (["digits"], "training.sample_rate = 0.25: the attack doesn't replay such training; attack the plan with"),
        (["digits-secure"], "privacy.unit = 'client': the attack doesn't replay such training"),
        (["digits-plain", "--set", "training.optimizer=adam"], "attack the plan with sgd"),
        (["digits-plain", "--set", "training.lerning_rate=1"], "did you mean"),
        (["digits-plain", "--iterations", "0"], "--iterations"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_made(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("attack", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_table_for_people(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("attack", "digits-plain", *SMALL, *QUICK, "--out", "one") == 0
    shown = capsys.readouterr()
    assert "playing the first of 2 rounds" in shown.err
    assert "Without protection the server gets each client's update, with no noise in it." in shown.out
    assert "images (Zhu et al.)" in shown.out
    assert "An attack that failed is no proof of privacy" in shown.out
    assert "written: one/reconstruction.json" in shown.out
    assert "svg" not in shown.out
    assert max(len(line) for line in shown.out.splitlines() if "images" in line) <= 80
    assert [path.name for path in Path("one").iterdir()] == ["reconstruction.json"]


def test_json_for_programs_and_a_picture_for_who_asks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("attack", "digits-plain", *SMALL, *QUICK, "--picture", "--json", "--out", "one") == 0
    shown = capsys.readouterr().out
    assert shown == Path("one/reconstruction.json").read_text()
    assert json.loads(shown)["schema"] == "veil-reconstruction-1"
    assert Path("one/reconstruction.svg").is_file()
    # Only --force replaces them; without a picture to be drawn, none of other figures stays.
    assert run("attack", "digits-plain", *SMALL, "--out", "one") == 2
    assert "is there already" in capsys.readouterr().err
    again = ["--updates", "0", "--force", "--picture", "--out", "one"]
    assert run("attack", "digits-plain", *SMALL, *again) == 0
    told = capsys.readouterr()
    assert "not tried: images: nobody asked for it" in told.out
    assert "no picture: no image was reconstructed" in told.err
    assert [path.name for path in Path("one").iterdir()] == ["reconstruction.json"]


def test_a_run_and_its_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("simulate", "digits-plain", *SMALL, "--engine", "inline", "--out", "run") == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    assert run("attack", "run", "--updates", "0") == 0
    assert {path: path.read_bytes() for path in before} == before, "an attack leaves the run as it is"
    assert run("report", "run") == 0
    assert "What the server could have seen" in Path("run/report.html").read_text()
    capsys.readouterr()
    assert run("report", "run", "--picture") == 2
    assert "make it with veil attack run --picture" in capsys.readouterr().err
    Path("run/reconstruction.json").write_text("{")
    assert run("report", "run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("error: run/reconstruction.json: is damaged; attack the run again with --force, or remove the file")
