"""Flower's own processes as tests start them: offline, on ports of their own, none of them left over."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.conftest import environment

_BIN = Path(sys.executable).parent
_COMMANDS = ("flwr", "flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp")
_MARK = "VEIL_TEST_ENGINE"  # in the environment of all that an engine starts: Flower's processes leave their parents


def missing_commands() -> list[str]:
    """Flower's commands that aren't beside this Python."""
    return [name for name in _COMMANDS if shutil.which(name, path=str(_BIN)) is None]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Engine:
    """What runs in one folder; each process has a home and a log of its own there, by its name.

    Args:
        folder: exists and is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, port: int) -> subprocess.Popen[bytes]:
        """Start a server and wait until it listens on the port."""
        process = self.start_only(name, *command)
        self.wait(lambda: _listens(process, port), f"{name} listens", by=name)
        return process

    def start_only(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a process and leave it to itself."""
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment(name), cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        self._processes[name] = process
        return process

    def process(self, name: str) -> subprocess.Popen[bytes]:
        """What was started under that name."""
        return self._processes[name]

    def flwr(self, *arguments: str, timeout: float = 240) -> str:
        """Run the `flwr` command, as somebody at a terminal; what it prints."""
        result = subprocess.run(
            ["flwr", *arguments],
            env=self._environment("flwr"),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def connect(self, name: str, **settings: Any) -> None:
        """Tell `flwr` of a server, under a name."""
        values = {key.replace("_", "-"): "true" if value is True else f"'{value}'" for key, value in settings.items()}
        lines = [f'[superlink]\ndefault = "{name}"\n\n[superlink.{name}]', *map(" = ".join, values.items())]
        (self.home("flwr") / "config.toml").write_text("\n".join(lines) + "\n")

    def home(self, name: str) -> Path:
        """Where a process keeps what Flower keeps in a user's home."""
        found = self.folder / "homes" / name
        found.mkdir(parents=True, exist_ok=True)
        return found

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return self._log(name).read_text(errors="replace")

    def wait(self, met: Callable[[], bool], what: str, *, by: str, seconds: float = 60) -> None:
        """Wait for a condition that a process brings about, as long as it lives."""
        deadline = time.monotonic() + seconds
        while not met():
            assert self._processes[by].poll() is None, f"{by} ended before {what}:\n{self.log(by)}"
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}\n{self.log(by)}"
            time.sleep(0.05)

    def close(self) -> None:
        """End all that was started, and what that started."""
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        _, left = psutil.wait_procs(list(self._started()), timeout=3)
        while left:
            for one in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(left, timeout=10)
            left = list(self._started())
        for process in self._processes.values():
            process.wait()

    def _started(self) -> Iterator[psutil.Process]:
        """Whatever bears this engine's mark and has not ended."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def _environment(self, name: str) -> dict[str, str]:
        return environment() | {
            _MARK: str(self.folder),
            "FLWR_HOME": str(self.home(name)),
            "PATH": f"{_BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # instead of 1 s; Flower's other waits, of 3 s, are fixed
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Whether this very process does: another one may have taken the port meanwhile, and answer there."""
    with contextlib.suppress(psutil.Error):
        return any(
            found.status == psutil.CONN_LISTEN and found.laddr.port == port
            for found in psutil.Process(process.pid).net_connections("tcp")
        )
    return False
