"""The command as a person runs it: in a process of its own, in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Veil = Callable[..., subprocess.CompletedProcess[str]]


def veil_command(arguments: Sequence[str]) -> list[str]:
    """How to start `veil` with this Python."""
    return [sys.executable, "-m", "veil.main", *arguments]


@pytest.fixture
def veil(tmp_path: Path) -> Veil:
    """Run `veil` with arguments in an empty folder and wait for it."""

    def run(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            veil_command(arguments),
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


def environment() -> dict[str, str]:
    """This environment, with the terminal's width fixed and no colours."""
    return {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "PYTHONPATH": ""}
