"""`veil sweep` on the command line: wrong usage in one line, and what a person or a program reads of a sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulations.sweep.book import JUDGED, Row, SweepFolder, Terms
from simulations.sweep.space import parse_axes, points
from simulations.sweep.trials import Trial, trials_of
from tests.veil.test_main import run
from veil.commands.sweep_console import SweepConsole, cost_lines

TERMS = Terms(metric="accuracy", larger=True, charge=False, early_stop=False, judged=JUDGED["server"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give a PLAN to sweep over, or --resume DIR"),
        (["digits"], "a sweep goes over something: give --over KEY=VALUE,VALUE,..."),
        (["digit", "--over", "training.steps=1"], "digit: no such scenario or plan file; did you mean digits?"),
        (["digits", "--over", "training.steps=1", "--resume", "x"], "--resume goes on with what is in the sweep's"),
        (["--resume", "nowhere"], "nowhere: no sweep here (sweep.json is missing)"),
        (["digits", "--over", "training.lerning_rate=1"], "training.lerning_rate: unknown key; did you mean"),
        (["digits", "--over", "training.steps=0,1"], "training.steps=0: digits: training.steps = 0"),
        (["digits", "--over", "training.steps=1,2", "--samples", "3"], "--samples draws points"),
        (["digits", "--over", "training.steps=1", "--track", "wandb"], "tracker 'wandb': give tensorboard=DIR"),
    ],
)
def test_wrong_usage_is_one_line_and_nothing_is_made(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("sweep", *arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def sweep(tmp_path: Path) -> tuple[SweepFolder, list[Trial], dict[str, Any]]:
    tried = points(
        parse_axes(["training.learning_rate=0.1,0.2", "privacy.trust=local,none"]), samples=None, random=False, seed=7
    )
    trials = trials_of("digits", ("model.name=mlp", "federation.rounds=2"), tried, charge=False)
    folder = SweepFolder(tmp_path / "sweep")
    folder.create(trials, TERMS)
    _, rows, _ = folder.load()
    changed = [
        Row(**{**vars(rows[0]), "state": "done", "value": 0.5, "rounds": 2}),
        Row(**{**vars(rows[1]), "state": "broken", "reason": "its process ended"}),
        Row(**{**vars(rows[2]), "state": "stopped-early", "value": 0.25, "rounds": 1}),
        Row(**{**vars(rows[3]), "state": "done", "value": 0.75, "rounds": 2}),
    ]
    return folder, trials, folder.write(trials, changed, TERMS)


def test_a_sweep_is_told_in_plain_lines(
    sweep: tuple[SweepFolder, list[Trial], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, trials, book = sweep
    rows = [Row(**row) for row in book["trials"]]
    console = SweepConsole(as_json=False)
    with console.watching():
        console.begins(folder, trials, [], TERMS)
        console.trial_began(rows[0])
        console.trial_round(rows[0])
        for row in rows:
            console.trial_ended(row)
        print("(raylet) a worker died")
    console.closing(book)
    captured = capsys.readouterr()
    assert captured.err == "(raylet) a worker died\n", "what others print is not among it"
    lines = captured.out.splitlines()
    assert lines[0] == f"4 trials; compared by accuracy; folder: {folder.path}"
    assert lines[1] == "trial-04  goes on"
    assert "trial-04  done: accuracy 0.7500  (1/1)" in lines
    assert "trial-03  stopped early after round 1: accuracy 0.2500  (3/3)" in lines
    assert "trial-02  broken: its process ended  (4/4)" in lines
    assert "best: trial-04 (learning_rate=0.2 trust=none), accuracy 0.7500" in lines
    assert any("trial-02, trial-04: without privacy; records that such a trial trains on" in line for line in lines)
    assert "selection: uncharged" in lines


def test_with_json_a_program_reads_json_alone(
    sweep: tuple[SweepFolder, list[Trial], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, trials, book = sweep
    console = SweepConsole(as_json=True)
    with console.watching():
        console.begins(folder, trials, [], TERMS)
        console.trial_ended(Row(**book["trials"][0]))
        print("(raylet) a worker died")
    console.closing(book)
    assert json.loads(capsys.readouterr().out) == {"folder": str(folder.path), **book}


def test_epsilons_are_rounded_up_and_never_without_what_they_are_about(
    sweep: tuple[SweepFolder, list[Trial], dict[str, Any]],
) -> None:
    *_, book = sweep
    book["search"][0]["epsilon"] = 8.0001
    (line,) = [line for line in cost_lines(book) if line.startswith("epsilon of the search")]
    assert line.startswith("epsilon of the search: 8.01 at delta 1e-05 for all 2 trials")
    for word in ("record, not person", "trust: local", "add or remove one unit", "PLD", "not a claim"):
        assert word in line
    book["search"][0].update(epsilon=None, problem="why not")
    (line,) = [line for line in cost_lines(book) if line.startswith("epsilon of the search")]
    assert line == "epsilon of the search: none; 2 trials trained on the same records; why not"
