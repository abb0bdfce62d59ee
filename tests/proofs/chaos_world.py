"""The federation that chaos comes over: four hospitals and a server as processes, and what holds them together.

Between each site and the server there is a wire that can be cut; homes may lie on small disks that can be filled;
processes may run under clocks that can be set. All of it is real: only the hands that do the harm are ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from security.authority import certify_site
from security.certificates import load_certificate, read_peer
from security.homes import AuthorityHome
from security.key_files import load_tls_key
from security.key_pairs import put_certificate
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.resolve import resolve
from simulations.deployment.demo import HOSPITALS, policy
from simulations.deployment.pilot import FEDERATION, Pilot
from simulations.deployment.site_data import write_site_data
from simulations.scenarios import find_plan
from tests.proofs.faulty_wire import FaultyWire
from tests.proofs.lossy_network import LossyNetwork, lossy_network

SERVER: Final = "server"
BEAT: Final = 2.0
LOSS: Final = 0.05
_DISK_MB: Final = {SERVER: 64, "site": 48}
_CLOCK: Final = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
_DAY: Final = 86400.0


def chaos_plan(rounds: int, *, private: bool) -> Plan:
    """Small rounds that need all four hospitals."""
    overrides = (
        *(f"federation.rounds={rounds}", "federation.min_clients=4", "training.steps=2"),
        *("evaluation.baselines=false", "evaluation.every=5"),
    )
    return resolve(find_plan("hospitals" if private else "hospitals-plain", overrides))


@dataclass
class World:
    """A federation under way.

    Attributes:
        pilot: its homes and processes.
        plan: what is played.
        wires: of each site, or none where the wire between loses packets.
        clocks: the file that sets the clock of a process, where clocks can be set.
        disks: the file that fills the disk of a home, where that may be done.
        network: the wire that loses packets.
        started: monotonic time of each process's newest start, and how many there were.
    """

    pilot: Pilot
    plan: Plan
    wires: dict[str, FaultyWire] = field(default_factory=dict)
    clocks: dict[str, Path] = field(default_factory=dict)
    disks: dict[str, Path] = field(default_factory=dict)
    network: LossyNetwork | None = None
    started: dict[str, float] = field(default_factory=dict)
    starts: int = 0

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(self.pilot.sites)

    # --- processes

    def start(self, name: str) -> None:
        """Start the server or a site, or start it again."""
        self.started[name] = time.monotonic()
        self.starts += 1
        under = self._under(name)
        if name != SERVER:
            self.pilot.start_site(name, "--until-done", under=under)
        elif self.pilot.server.queue.exists():
            self.pilot.start_server("resume", str(self.pilot.server.path), under=under)
        else:
            plan = self.pilot.folder / "plan.toml"
            self.pilot.start_server("start", str(self.pilot.server.path), str(plan), under=under)

    def kill(self, name: str) -> None:
        """Kill it (signal 9)."""
        self.pilot.kill(name)

    def freeze(self, name: str) -> None:
        """Let a process stand still."""
        self.pilot.processes[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        self.pilot.processes[name].send_signal(signal.SIGCONT)

    def exit_code(self, name: str) -> int | None:
        """Of a process that has ended."""
        return self.pilot.processes[name].poll()

    def is_connected(self, name: str) -> bool:
        """Whether a site's process says that it is connected."""
        try:
            status = json.loads(self.pilot.site(name).status.read_bytes())
        except (OSError, ValueError):
            return False
        return bool(status["connected"]) and status["process"] == self.pilot.processes[name].pid

    # --- what the programs have written

    @property
    def run(self) -> RunFolder | None:
        """The run's folder, once there is one."""
        entry = self.entry()
        return None if entry is None else RunFolder(self.pilot.server.path / entry["folder"])

    def entry(self) -> dict[str, Any] | None:
        """The run's entry in the server's queue."""
        try:
            (entry,) = json.loads(self.pilot.server.queue.read_bytes())["entries"]
        except FileNotFoundError:
            return None
        found: dict[str, Any] = entry
        return found

    def rounds(self) -> list[int]:
        """The rounds that the server has written down."""
        run = self.run
        return [] if run is None else [int(line["round"]) for line in run.read_metrics()]

    # --- certificates

    def issue(self, name: str, *, now: float, seconds: float) -> None:
        """Put a certificate of the site's that holds for so many seconds from `now` in the place of its own."""
        office, site = AuthorityHome(self.pilot.folder / "authority"), self.pilot.site(name)
        own = site.certificate.read_bytes()
        key = load_certificate(own).public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        identity = read_peer(own).identity
        assert identity is not None
        new = certify_site(
            office.authority_certificate.read_bytes(),
            load_tls_key(office.authority_key, None),
            federation=FEDERATION,
            site=name,
            key=key,
            identity=identity,
            now=now,
            days=seconds / _DAY,
        )
        put_certificate(new, site.certificate)

    # --- inside

    def _under(self, name: str) -> list[str]:
        end: Sequence[str] = ()
        if self.network is not None:
            end = self.network.server if name == SERVER else self.network.site
        if name not in self.clocks:
            return list(end)
        clock = {
            "LD_PRELOAD": str(_CLOCK),
            "FAKETIME_TIMESTAMP_FILE": str(self.clocks[name]),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }
        return [*end, "env", *(f"{key}={value}" for key, value in clock.items())]


@contextlib.contextmanager
def world(folder: Path, plan: Plan, *, lossy: int | None) -> Iterator[World]:
    """A provisioned federation, nothing started yet; at the end every process is gone.

    Args:
        folder: new.
        plan: to be played.
        lossy: the seed of a network that loses packets; None for wires that can be cut.
    """
    with ExitStack() as stack:
        pilot = Pilot.provision(folder, HOSPITALS)
        stack.callback(pilot.close)
        found = World(pilot=pilot, plan=plan)
        (folder / "plan.toml").write_text(write_plan(plan), encoding="utf-8")
        own = folder / "test"
        own.mkdir()
        files, test = write_site_data(plan, {name: _made(pilot.site(name).path / "data") for name in HOSPITALS}, own)
        if lossy is not None:
            found.network = stack.enter_context(lossy_network(LOSS, seed=lossy))
        for name in HOSPITALS:
            if found.network is not None:
                address = f"{found.network.address}:{pilot.port}"
            else:
                found.wires[name] = wire = FaultyWire(pilot.port)
                stack.callback(wire.close)
                address = f"127.0.0.1:{wire.port}"
            pilot.configure_site(
                name,
                policy(name, [plan])
                | {"approval": {"plans": "policy"}, "server": {"address": address}, "resources": {"niceness": 0}},
                files[name],
            )
        pilot.configure_server({"beat_seconds": BEAT}, test)
        if found.network is not None:
            text = pilot.server.settings.read_text(encoding="utf-8")
            pilot.server.settings.write_text(text.replace("127.0.0.1:", "0.0.0.0:"), encoding="utf-8")
        _small_disks(found, stack)
        if _CLOCK is not None:
            for name in (SERVER, *HOSPITALS):
                found.clocks[name] = folder / f"clock-{name}"
                found.clocks[name].write_text("+0\n", encoding="utf-8")
        yield found


def _small_disks(found: World, stack: ExitStack) -> None:
    """Put the homes of the server and of two sites onto disks of their own, where this machine allows it."""
    if os.geteuid() != 0:
        return
    pilot = found.pilot
    for name in (SERVER, *pilot.sites[:2]):
        home = pilot.server.path if name == SERVER else pilot.site(name).path
        size = _DISK_MB.get(name, _DISK_MB["site"])
        moved = home.with_name(home.name + ".moved")
        home.rename(moved)
        home.mkdir(mode=moved.stat().st_mode & 0o777)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode={moved.stat().st_mode & 0o777:o}", "veil", str(home)]
        tried = subprocess.run(mount, check=False, capture_output=True)
        if tried.returncode == 0:
            stack.callback(_unmount, pilot, name, home)
            found.disks[name] = home / "filling"
        shutil.copytree(moved, home, dirs_exist_ok=True, symlinks=True)


def _unmount(pilot: Pilot, name: str, home: Path) -> None:
    """Keep what the home holds, and give the disk back."""
    process = pilot.processes.get(name)
    if process is not None and process.poll() is None:
        process.kill()
        process.wait()
    kept = home.with_name(home.name + ".moved")
    (home / "filling").unlink(missing_ok=True)
    with contextlib.suppress(OSError, shutil.Error):  # its socket can't be copied
        shutil.copytree(home, kept, dirs_exist_ok=True, symlinks=True)
    subprocess.run(["umount", "-l", str(home)], check=False, capture_output=True)


def fill(path: Path) -> int:
    """Fill a disk to the brim; the bytes that it took."""
    written = 0
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    written += file.write(b"\0" * size)
    return written


def _made(path: Path) -> Path:
    path.mkdir()
    return path
