"""`kill -9` in the middle of a run, then `--resume`: the same model as an unbroken run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.e2e.conftest import Veil, environment, veil_command
from tests.simulations.ledger_reading import charges, epsilon, reserved, settle

SMALL = (
    *("digits", "--engine", "inline", "--set", "model.name=mlp", "--set", "federation.rounds=6"),
    *("--set", "federation.strategy=fedadam", "--set", "federation.strategy_options.eta=0.02"),
)


@pytest.mark.parametrize(
    ("privacy", "killed_in"),
    [(("--set", "privacy.trust=none"), 4), (("--set", "privacy.noise=reproducible"), 1)],
    ids=["no privacy", "reproducible noise"],
)
def test_a_killed_run_resumes_to_the_same_model(
    veil: Veil, tmp_path: Path, privacy: tuple[str, ...], killed_in: int
) -> None:
    whole = veil("simulate", *SMALL, *privacy, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    command = veil_command(["simulate", *SMALL, *privacy, "--out", "broken"])
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            # A line is printed when a round is on disk, so the kill comes somewhere in the next one.
            if line.startswith(
                (f"round {killed_in - 1}/6", "digits: 10 clients") if killed_in == 1 else f"round {killed_in - 1}/6"
            ):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = veil("simulate", "--resume", "broken", "--engine", "inline")
    assert resumed.returncode == 0, resumed.stderr
    expected = load_file(tmp_path / "whole" / "model" / "model.safetensors")
    found = load_file(tmp_path / "broken" / "model" / "model.safetensors")
    assert {name: value.tobytes() for name, value in found.items()} == {
        name: value.tobytes() for name, value in expected.items()
    }


HANGS = """
import hashlib
import os
import signal
import sys
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto

from client import app as good
from client import private_trainer
from shared_models.protocol import CONFIG, ROUND

app = ClientApp()


@app.train()
def train(message, context):
    number, client = message.content.config_records[CONFIG][ROUND], context.node_config["client-id"]
    if number == 2 and client == "5" and "hang" in sys.argv:
        inner = private_trainer.train_private

        def training(*arguments, **named):
            print("in the middle of round 2", flush=True)
            signal.pause()

        private_trainer.train_private = training
    reply = good.train(message, context)
    raw = recorddict_to_proto(reply.content).SerializeToString(deterministic=True)
    with open("replies.log", "a") as file:
        print(number, client, hashlib.sha256(raw).hexdigest(), file=file, flush=True)
    return reply


app.query("statement")(good.statement)


if __name__ == "__main__":
    from simulations import worker
    from simulations.run import Settings, resume_run, start_run
    from simulations.scenarios import find_plan

    worker._TOGETHER = 3600.0 if "together" in sys.argv else 0.0
    settings = Settings(engine="inline", app="hangs:app")
    if "hang" in sys.argv:
        plan = find_plan("digits", ["model.name=mlp", "training.steps=1", "federation.rounds=4"])
        start_run(plan, Path("broken"), settings)
    else:
        resume_run(Path("broken"), settings)
"""


def kill_in_round_2(folder: Path, *how: str) -> Path:
    """Play a private run with secret noise, and kill it while client 5 trains for round 2; the run's folder."""
    (folder / "hangs.py").write_text(HANGS)
    command = [sys.executable, "hangs.py", "hang", *how]
    with subprocess.Popen(command, cwd=folder, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle of round 2\n"
        process.send_signal(signal.SIGKILL)
    return folder / "broken"


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """Killed after clients 0 to 4 had each handed over a reply for round 2."""
    return kill_in_round_2(tmp_path)


def once_each(ledger: Path, rounds: int) -> bool:
    return reserved(ledger) == {(str(i), "train", number): 1 for i in range(10) for number in range(1, rounds + 1)}


def charged_by_the_kill(answered: int) -> dict[tuple[str, str, int], int]:
    """Everybody for round 1, and for round 2 those who had answered."""
    first = {(str(number), "train", 1): 1 for number in range(10)}
    return first | {(str(number), "train", 2): 1 for number in range(answered)}


def test_a_private_run_killed_in_a_round_goes_on_to_its_end_and_is_charged_once_a_round(
    veil: Veil, killed: Path
) -> None:
    """Principle 5: who had answered sends the stored reply; of who was at work nothing had left."""
    assert reserved(killed / "ledger.sqlite") == charged_by_the_kill(answered=5)
    resumed = veil("simulate", "--resume", "broken", "--engine", "inline")
    assert resumed.returncode == 0, resumed.stderr
    assert resumed.stderr == ""
    assert "done: all 4 rounds" in resumed.stdout
    assert once_each(killed / "ledger.sqlite", 4)
    privacy = json.loads((killed / "summary.json").read_text())["privacy"]
    assert {(row["charged_rounds"], row["rounds"], row["refused"]) for row in privacy["clients"]} == {(4, 4, 0)}
    assert {row["statement"] for row in privacy["clients"]} == {"verified"}
    assert privacy["epsilon_max"] <= privacy["epsilon_planned"] == 8.0
    for number in range(10):
        spent = epsilon(charges(killed / "ledger.sqlite", str(number)), privacy["delta"])
        assert spent == pytest.approx(privacy["clients"][number]["epsilon"], abs=1e-6)


def test_clients_that_had_committed_send_the_identical_reply(killed: Path) -> None:
    before = (killed.parent / "replies.log").read_text().split("\n")[:-1]
    assert [line.split()[:2] for line in before[10:]] == [["2", str(number)] for number in range(5)]
    (killed.parent / "replies.log").unlink()
    subprocess.run([sys.executable, "hangs.py"], cwd=killed.parent, env=environment(), check=True, timeout=240)
    again = (killed.parent / "replies.log").read_text().split("\n")[:-1]
    assert again[:5] == before[10:]
    assert len(again) == 30
    assert len({line.split()[2] for line in again}) == 30
    assert once_each(killed / "ledger.sqlite", 4)


def test_replies_that_waited_for_others_when_the_run_was_killed_had_not_left_and_are_made_anew(tmp_path: Path) -> None:
    """Entries are written for some clients at once, and their replies wait for that: neither is there, or both are."""
    broken = kill_in_round_2(tmp_path, "together")
    assert reserved(broken / "ledger.sqlite") == charged_by_the_kill(answered=0)
    lost = (tmp_path / "replies.log").read_text().split("\n")[10:-1]
    (tmp_path / "replies.log").unlink()
    subprocess.run([sys.executable, "hangs.py"], cwd=tmp_path, env=environment(), check=True, timeout=240)
    again = (tmp_path / "replies.log").read_text().split("\n")[:-1]
    assert len(lost) == 5
    assert not {line.split()[2] for line in lost} & {line.split()[2] for line in again}  # with other noise
    assert once_each(broken / "ledger.sqlite", 4)


def test_a_killed_run_whose_ledger_is_gone_does_not_go_on(veil: Veil, killed: Path) -> None:
    for name in ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm"):
        (killed / name).unlink(missing_ok=True)
    resumed = veil("simulate", "--resume", "broken", "--engine", "inline")
    assert resumed.returncode == 2
    assert resumed.stderr.startswith("error: broken/ledger.sqlite: is missing, and with it what clients have spent")
    assert resumed.stderr.count("\n") == 1


def test_a_killed_run_whose_ledger_is_damaged_does_not_go_on(veil: Veil, killed: Path) -> None:
    settle(killed / "ledger.sqlite")
    with (killed / "ledger.sqlite").open("r+b") as file:
        file.write(b"X")
    resumed = veil("simulate", "--resume", "broken", "--engine", "inline")
    assert resumed.returncode == 1
    assert "ledger.sqlite: is no ledger, or its beginning is damaged" in resumed.stderr
    assert resumed.stderr.count("\n") == 1
