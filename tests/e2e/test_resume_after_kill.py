"""`kill -9` in the middle of a run, then `--resume`: the same model as an unbroken run."""

from __future__ import annotations

import signal
import subprocess
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
