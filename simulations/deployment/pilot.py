"""A whole federation as processes of one machine: an authority, a server, sites, on loopback and through mutual TLS.

Everything is done by the `veil` command, as people would do it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import tomli_w

from security.errors import RunError
from security.homes import ServerHome, SiteHome
from simulations.deployment.site_data import SiteFile

FEDERATION: Final = "pilot"
_QUIET: Final = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRPC_VERBOSITY": "NONE",
    "COLUMNS": "160",
}


@dataclass
class Pilot:
    """A provisioned federation in a folder.

    Attributes:
        folder: `authority`, `server`, `sites/NAME`, and what the processes print in `output`.
        sites: their names.
        port: where the server listens on loopback.
        processes: those that were started, by name; the server's is `server`.
    """

    folder: Path
    sites: Sequence[str]
    port: int
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    def provision(cls, folder: Path, sites: Sequence[str], *, federation: str = FEDERATION) -> Pilot:
        """Make authority, server and sites (`veil provision kits`).

        Raises:
            RunError: the command failed; its output is in the text.
        """
        folder.mkdir(parents=True, exist_ok=True)
        port = free_port()
        description = folder / "federation.toml"
        content = {
            "name": federation,
            "sites": list(sites),
            "server": {"address": f"127.0.0.1:{port}", "names": ["localhost", "127.0.0.1"]},
        }
        description.write_text(tomli_w.dumps(content), encoding="utf-8")
        pilot = cls(folder=folder, sites=tuple(sites), port=port)
        (folder / "output").mkdir(exist_ok=True)
        pilot.veil("provision", "kits", str(description), "--out", str(folder))
        return pilot

    @property
    def server(self) -> ServerHome:
        """The server's home."""
        return ServerHome(self.folder / "server")

    def site(self, name: str) -> SiteHome:
        """A site's home."""
        return SiteHome(self.folder / "sites" / name)

    def configure_server(self, changes: Mapping[str, Any], test: SiteFile | None = None) -> None:
        """Change `server.toml`, and name the server's own test data."""
        changes = {**changes, "address": f"127.0.0.1:{self.port}"}
        if test is not None:
            changes["data"] = [{"name": test.name, "format": test.format, "path": str(test.path)}]
        _change(self.server.settings, changes)

    def configure_site(self, name: str, changes: Mapping[str, Any], data: SiteFile) -> None:
        """Change `site.toml`, and name the site's data."""
        table = {"name": data.name, "format": data.format, "path": str(data.path)}
        _change(self.site(name).settings, {**changes, "data": [table]})

    def start_server(self, *arguments: str, under: Sequence[str] = ()) -> None:
        """Start `veil server start HOME ...` (or `resume`: give the whole of what comes after `server`)."""
        self._start("server", ["server", *arguments], under)

    def start_site(self, name: str, *arguments: str, under: Sequence[str] = ()) -> None:
        """Start `veil client run HOME`."""
        self._start(name, ["client", "run", str(self.site(name).path), *arguments], under)

    def wait(self, name: str, seconds: float) -> int:
        """The exit code of a process.

        Raises:
            RunError: it is not over after so many seconds; it goes on.
        """
        try:
            return self.processes[name].wait(seconds)
        except subprocess.TimeoutExpired:
            raise RunError(f"{name}: is not over after {seconds:.0f} s\n{self.output(name)[-2000:]}") from None

    def kill(self, name: str) -> None:
        """Kill a process at once (signal 9)."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str, seconds: float = 60) -> int:
        """Ask a process to end (SIGTERM), and wait for it."""
        if self.processes[name].poll() is None:
            self.processes[name].send_signal(signal.SIGTERM)
        return self.wait(name, seconds)

    def close(self) -> None:
        """Kill what still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()

    def output(self, name: str) -> str:
        """What a process has printed, over all its starts."""
        return (self.folder / "output" / f"{name}.txt").read_text(encoding="utf-8", errors="replace")

    def veil(self, *arguments: str) -> str:
        """Run a command to its end; what it printed.

        Raises:
            RunError: it failed.
        """
        done = subprocess.run(  # noqa: S603  # our own command
            _command(arguments),
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, **_QUIET},
            cwd=self.folder,
            timeout=300,
        )
        if done.returncode:
            raise RunError(f"veil {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _start(self, name: str, arguments: Sequence[str], under: Sequence[str]) -> None:
        with (self.folder / "output" / f"{name}.txt").open("ab") as output:
            self.processes[name] = subprocess.Popen(  # noqa: S603
                [*under, *_command(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_QUIET},
                cwd=self.folder,
            )


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-P", "-m", "veil.main", *arguments]  # a folder named `server` must not hide the package


def _change(path: Path, changes: Mapping[str, Any]) -> None:
    """Change tables of a TOML file: a table's keys one by one, anything else whole."""
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        found[key] = {**found.get(key, {}), **value} if isinstance(value, Mapping) else value
    path.write_text(tomli_w.dumps(found), encoding="utf-8")
