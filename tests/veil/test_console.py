"""What a person sees while a run goes on, and when it is cut short."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from server.observer import RoundRecord
from server.run_folder import RunFolder
from shared_models.resolve import resolve
from simulations import run as simulations_run
from simulations.repeat import repeat_run
from simulations.run import Settings
from simulations.scenarios import find_plan
from veil.commands.console import Console

PLAN = resolve(find_plan("digits"))
RECORD = RoundRecord(
    round=1,
    seconds=1.0,
    cohort=10,
    updates=9,
    faults=[{"client": "3", "reason": "client-failed"}],
    train_loss=None,
    epsilon_max=2.5,
    bytes_up=1,
    bytes_down=1,
    evaluation={"accuracy": 0.5},
    unit="record, not person",
)


def test_an_epsilon_while_training_is_said_to_be_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 4: a run that stops early for what the data showed claims every planned round, so this is not the claim."""
    piped = Console(as_json=False)
    piped.started(PLAN, clients=10, done=0)
    piped.round_done(RECORD)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == (
        "round 1/20  clients 9/10  accuracy 0.5000  epsilon so far 2.500 a record  client 3: client-failed  19 s left"
    )
    terminal = RichConsole(width=100)
    terminal.print(piped._table())
    assert "epsilon a record so far" in capsys.readouterr().out.splitlines()[0]


def test_a_note_is_one_line_and_never_among_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        Console(as_json=as_json).note("something to know")
        assert capsys.readouterr() == ("", "note: something to know\n")


def test_ctrl_c_names_the_run_to_go_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(PLAN)
    assert interrupted(run.path, capsys) == f"interrupted; go on with: veil simulate --resume {run.path}\n"
    assert interrupted(tmp_path / "none", capsys) == "interrupted; no run was cut off\n"


def test_ctrl_c_among_repeats_names_the_one_that_was_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder around them is no run and can't be resumed."""
    plan = find_plan(
        "digits", ["model.name=mlp", "training.steps=1", "federation.rounds=1", "privacy.trust=none", "seed=9"]
    )
    console = Console(as_json=False)
    played = simulations_run.server_app
    calls: list[object] = []

    def second_is_cut_off(job: object) -> object:
        calls.append(job)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return played(job)  # type: ignore[arg-type]

    monkeypatch.setattr(simulations_run, "server_app", second_is_cut_off)
    with pytest.raises(KeyboardInterrupt), console.watching(tmp_path):
        repeat_run(plan, 3, tmp_path, Settings(engine="inline", observer=console))
    assert capsys.readouterr().err == (
        f"interrupted; the seeds before are done; go on with: veil simulate --resume {tmp_path / 'seed-10'}\n"
    )


def interrupted(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What Ctrl-C prints."""
    with pytest.raises(KeyboardInterrupt), Console(as_json=False).watching(folder):
        raise KeyboardInterrupt
    return capsys.readouterr().err


def test_where_clients_failed_is_told_beside_the_count_of_faults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["model.name=mlp", "training.steps=1", "federation.rounds=1", "data.partition.clients=2"]
    plan = find_plan("digits", [*overrides, "privacy.trust=none"])
    settings = Settings(engine="inline", app="tests.simulations.faulty_app:app")
    folder, _ = simulations_run.start_run(plan, tmp_path / "run", settings)
    Console(as_json=False).closing(folder)
    assert "faults             1; clients.log says where in the code" in capsys.readouterr().out
    folder.client_log.unlink()  # as when a reply is malformed: the client knows of no failure
    Console(as_json=False).closing(folder)
    assert "says where" not in capsys.readouterr().out
