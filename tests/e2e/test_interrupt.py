"""Ctrl-C: the last checkpoint is kept, the command says how to go on, and exits with 130."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Veil, environment, veil_command

SMALL = ("digits", "--set", "model.name=mlp", "--set", "federation.rounds=300", "--set", "privacy.trust=none")


@pytest.mark.ray
@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_an_interrupted_run_keeps_its_checkpoint(tmp_path: Path, veil: Veil, engine: str) -> None:
    command = veil_command(["simulate", *SMALL, "--engine", engine, "--out", "run"])
    # Ctrl-C is ignored in a shell's background jobs, and what they start inherits that; a person's terminal isn't one.
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - the test has no threads
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("round 2/300"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        stderr = process.stderr.read()
    assert process.returncode == 130
    assert stderr.strip() == "interrupted; go on with: veil simulate --resume run"
    assert len(list((tmp_path / "run" / "checkpoints").glob("round-*"))) == 2
    assert not (tmp_path / "run" / "summary.json").exists()


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
