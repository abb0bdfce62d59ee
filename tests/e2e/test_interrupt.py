"""Ctrl-C: the last checkpoint is kept, the command says how to go on, and exits with 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
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
    assert len(list((tmp_path / "run" / "checkpoints").glob("round-*"))) in (2, 3)
    assert not (tmp_path / "run" / "summary.json").exists()


def _hear_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LOADING = """
import os

from simulations import run
from simulations.scenarios import find_plan


def load(plan):
    with open("told", "w") as told:  # waits for whoever is to hear it
        told.write("loading")
    with open("never") as never:  # waits for ever
        never.read()


run.load_data = load
os.mkfifo("never")
run.start_run(find_plan("digits"), None, run.Settings(engine="ray", workers=1))
"""


@pytest.mark.ray
def test_an_interrupt_while_data_is_loaded_ends_ray_and_waits_for_nobody(tmp_path: Path) -> None:
    (tmp_path / "loading.py").write_text(LOADING)
    os.mkfifo(tmp_path / "told")
    with subprocess.Popen(
        [sys.executable, "loading.py"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=_hear_ctrl_c,  # noqa: PLW1509 - the test has no threads
    ) as process:
        try:
            assert (tmp_path / "told").read_text() == "loading"
            started = of_ray(process)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert stderr.endswith("KeyboardInterrupt\n")
    assert psutil.wait_procs(started, timeout=60)[1] == []
    assert not (tmp_path / "runs").exists()


def of_ray(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's processes under another one, once an actor is among them."""
    while process.poll() is None:
        found = psutil.Process(process.pid).children(recursive=True)
        for one in found:
            with suppress(psutil.Error):  # it has just ended
                if one.name().startswith("ray::Client"):
                    return found
        os.sched_yield()
    raise AssertionError("it ended before Ray had begun")


def test_a_reader_that_leaves_ends_the_run_without_a_word_and_it_can_be_resumed(tmp_path: Path, veil: Veil) -> None:
    """As `veil simulate ... | head -1` does."""
    plan = (*SMALL[:-2], "--set", "federation.rounds=12", "--set", "training.steps=1", "--engine", "inline")
    with subprocess.Popen(
        veil_command(["simulate", *plan, "--out", "run"]),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("digits: 10 clients")
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    assert any((tmp_path / "run" / "checkpoints").iterdir())
    resumed = veil("simulate", "--resume", "run", "--engine", "inline")
    assert resumed.returncode == 0, resumed.stderr
    assert "done: all 12 rounds" in resumed.stdout  # nothing was cut off, so nothing was charged twice


def test_a_reader_that_left_before_the_end_of_a_short_output_is_no_error_of_ours(tmp_path: Path) -> None:
    """What is printed is written only when the command ends."""
    with subprocess.Popen(
        veil_command(["plan", "show", "digits"]),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
