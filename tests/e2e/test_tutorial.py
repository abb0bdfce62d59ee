"""`docs/tutorial-own-csv.md`, played: its own commands, out of its own text, on fewer records and rounds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import environment
from tests.shared_models.fetching import fetch_or_skip

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial-own-csv.md").read_text(encoding="utf-8")
ROWS = 4000
"""Of the table; all sixteen sites are among them."""


def blocks(kind: str) -> list[str]:
    """What the page's code blocks of a kind hold."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """What follows a `$ `, with further lines where a quotation stays open."""
    found: list[str] = []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(line.removeprefix("$ "))
            elif found and found[-1].count("'") % 2:
                found[-1] += f"\n{line}"
    return found


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment whose `veil` is these sources'."""
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "veil").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m veil.main "$@"\n')
    (tools / "veil").chmod(0o755)
    return {**environment(), "PYTHONPATH": str(ROOT), "PATH": f"{tools}:{os.environ['PATH']}"}


@pytest.fixture
def serving() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Services that end with the test."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for one in started:
        os.killpg(one.pid, signal.SIGTERM)
        one.wait(30)


def free_port() -> int:
    with socket.socket() as here:
        here.bind(("127.0.0.1", 0))
        port: int = here.getsockname()[1]
        return port


def until_it_answers(service: subprocess.Popen[bytes], port: int) -> None:
    """Ask for the service's health until it says so, or has ended."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        assert service.poll() is None, "the service has ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert json.load(answer)["status"] == "ok"
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    pytest.fail("the service has not answered in two minutes")


@pytest.mark.ray
@pytest.mark.timeout(900)  # a dozen commands
def test_a_newcomer_gets_from_a_csv_to_an_answer_by_the_pages_commands_alone(
    tmp_path: Path, shell: dict[str, str], serving: list[subprocess.Popen[bytes]]
) -> None:
    for library in ("captum", "onnxruntime", "onnxscript", "uvicorn"):
        pytest.importorskip(library)
    fetch_or_skip("adult")
    work, port = tmp_path / "work", free_port()
    work.mkdir()
    (plan,) = blocks("toml")
    assert "rounds = 60" in plan
    (work / "people.toml").write_text(plan.replace("rounds = 60", "rounds = 2").replace("every = 10", "every = 2"))
    said: dict[str, str] = {}
    for written in commands():
        command = written.replace("8000", str(port))
        if command.endswith(" &"):
            service = subprocess.Popen(["bash", "-c", command[:-2]], cwd=work, env=shell, start_new_session=True)
            serving.append(service)
            until_it_answers(service, port)
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=work, env=shell, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        said[" ".join(command.split()[:3])] = done.stdout
        if "--csv people.csv" in command:
            lines = (work / "people.csv").read_text().splitlines(keepends=True)
            assert len(lines) == 48_843
            (work / "people.csv").write_text("".join(lines[: ROWS + 1]))
    assert "data for 16 clients" in said["veil plan check"]
    assert "1,666 numbers learn" in said["veil plan estimate"]
    assert "all data pooled" in said["veil simulate people.toml"]
    assert (work / "run" / "report.html").is_file()
    assert "epsilon" in said["cat run/export/MODEL_CARD.md"]
    assert len(list((work / "sites").glob("*.csv"))) == 16
    (answer,) = json.loads(said["curl -s " + f"localhost:{port}/predict"])["outputs"]
    assert answer["class"] in ("<=50K", ">50K")
    assert sum(answer["probabilities"].values()) == pytest.approx(1)


def test_the_page_has_all_the_steps() -> None:
    """The commands are found in it: else the test above would run nothing."""
    steps = [" ".join(command.split()[:2]) for command in commands() if command.startswith("veil")]
    wanted = ("data fetch", "data export", "plan check", "plan estimate", "simulate people.toml", "report run")
    for step in (*wanted, "export run", "serve run"):
        name = "veil " + step.split()[0]
        assert name in steps, step
    assert len(blocks("toml")) == 1
