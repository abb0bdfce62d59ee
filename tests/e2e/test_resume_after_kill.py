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

SMALL = (
    *("digits", "--engine", "inline", "--set", "model.name=mlp", "--set", "federation.rounds=6"),
    *("--set", "federation.strategy=fedadam", "--set", "federation.strategy_options.eta=0.02"),
)


@pytest.mark.parametrize(
    "privacy",
    [("--set", "privacy.trust=none"), ("--set", "privacy.noise=reproducible")],
    ids=["no privacy", "reproducible noise"],
)
@pytest.mark.parametrize("killed_in", [1, 4])
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
import json
import signal
from pathlib import Path

from flwr.clientapp import ClientApp

from client import app as good
from shared_models.protocol import CONFIG, ROUND

app = ClientApp()


@app.train()
def train(message, context):
    if message.content.config_records[CONFIG][ROUND] == 2 and context.node_config["client-id"] == "5":
        print("in the middle of round 2", flush=True)
        signal.pause()
    return good.train(message, context)


if __name__ == "__main__":
    from simulations.run import Settings, start_run
    from simulations.scenarios import find_plan

    plan = find_plan("digits", ["model.name=mlp", "training.steps=1", "federation.rounds=3"])
    start_run(plan, Path("broken"), Settings(engine="inline", app="hangs:app"))
"""


def test_a_private_run_killed_in_a_round_is_charged_it_twice_and_says_why_it_ends_early(
    veil: Veil, tmp_path: Path
) -> None:
    """Principle 5: some of its clients had answered, with noise that nobody can draw again."""
    (tmp_path / "hangs.py").write_text(HANGS)
    command = [sys.executable, "hangs.py"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in the middle of round 2\n"
        process.send_signal(signal.SIGKILL)
    resumed = veil("simulate", "--resume", "broken", "--engine", "inline")
    assert resumed.returncode == 3
    assert resumed.stderr == (
        "note: round 2 was cut off and is played again; both times are charged, so the budget may end a round early\n"
    )
    out = " ".join(resumed.stdout.split())
    assert "stopped after round 2: a privacy budget is exhausted" in out
    assert "1 round was cut off or failed and played again, charged each time" in out
    assert "cut off after it had begun, and played again: round 2; both times are charged" in out
    rows = json.loads((tmp_path / "broken" / "summary.json").read_text())["privacy"]["clients"]
    assert {(row["charged_rounds"], row["rounds"], row["refused"]) for row in rows} == {(3, 2, 1)}
