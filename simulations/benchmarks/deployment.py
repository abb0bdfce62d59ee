"""What deployment costs: real processes on loopback, mutual TLS, ledgers that wait for the disk.

python -m simulations.benchmarks.deployment phases      # 4 sites, 100 rounds: seconds of a whole round
python -m simulations.benchmarks.deployment sites       # 200 sites at one server: its memory and processor time
python -m simulations.benchmarks.deployment model       # a 100 MB model to 8 sites: the server's peak memory
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil

from security.errors import RunError
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.resolve import resolve
from simulations.deployment.pilot import FEDERATION, Pilot
from simulations.deployment.site_data import write_site_data
from simulations.scenarios import find_plan

_MB: Final = 1e6
_PATIENCE: Final = 1800.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("phases", "sites", "model"))
    parser.add_argument("--sites", type=int, default=None, help="how many")
    parser.add_argument("--rounds", type=int, default=None)
    given = parser.parse_args(arguments)
    measure = {"phases": phases, "sites": sites, "model": model}[given.what]
    options = {key: value for key in ("sites", "rounds") if (value := getattr(given, key)) is not None}
    with tempfile.TemporaryDirectory() as folder:
        print(measure(Path(folder), **options))
    return 0


def phases(folder: Path, *, sites: int = 4, rounds: int = 100) -> str:
    """Rounds of next to no training: what a round takes is then what the phase costs, and an evaluation."""
    run, _, _ = _play(folder, sites, rounds, (), apart=True)
    seconds = sorted(float(line["seconds"]) for line in run.read_metrics())
    at = [f"{share:.0%} {seconds[min(len(seconds) - 1, int(share * len(seconds)))]:.3f}" for share in _SHARES]
    return (
        f"{sites} sites, {len(seconds)} private rounds of one step: seconds of a whole round, with training, ledger, "
        f"link and evaluation\nmedian {statistics.median(seconds):.3f}  least {seconds[0]:.3f}  {'  '.join(at)}  "
        f"most {seconds[-1]:.3f}"
    )


_SHARES: Final = (0.1, 0.25, 0.75, 0.9, 0.95, 0.99)


def sites(folder: Path, *, sites: int = 200, rounds: int = 10) -> str:
    """Many sites at one server."""
    run, peak, processor = _play(folder, sites, rounds, ())
    seconds = [float(line["seconds"]) for line in run.read_metrics()]
    clients = [int(line["updates"]) for line in run.read_metrics()]
    return (
        f"{sites} sites at one server, {rounds} rounds, {min(clients)} to {max(clients)} updates a round\n"
        f"server: peak memory {peak / _MB:.0f} MB, {processor / rounds:.2f} s of processor time a round\n"
        f"a round: median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s (the sites take turns)"
    )


def model(folder: Path, *, sites: int = 8, rounds: int = 3) -> str:
    """A network of 25 million parameters."""
    size = ("training.steps=1", "model.options={ hidden = [4096, 4096, 2000] }", "privacy.trust=none")
    run, peak, processor = _play(folder, sites, rounds, size)
    lines = run.read_metrics()
    seconds = [float(line["seconds"]) for line in lines]
    return (
        f"a model of {int(lines[0]['bytes_down']) / sites / _MB:.0f} MB to and from {sites} sites, {rounds} rounds\n"
        f"server: peak memory {peak / _MB:.0f} MB, {processor / rounds:.1f} s of processor time a round\n"
        f"a round: median {statistics.median(seconds):.1f} s"
    )


def _play(
    folder: Path, sites: int, rounds: int, overrides: Sequence[str], *, apart: bool = False
) -> tuple[RunFolder, int, float]:
    """Play a plan on digits; its folder, and the server's peak memory (bytes) and processor time (seconds).

    `apart` gives each site a process of its own.
    """
    plan = resolve(
        find_plan(
            "digits",
            (
                *("model.name=mlp", f"federation.rounds={rounds}", "training.steps=1", "privacy.epsilon=8"),
                f"data.partition={{ kind = 'iid', clients = {sites} }}",
                *overrides,
            ),
        )
    )
    names = [f"{number:0{len(str(sites - 1))}}" for number in range(sites)]
    pilot = Pilot.provision(folder, names)
    _configure(pilot, plan)
    (folder / "plan.toml").write_text(write_plan(plan), encoding="utf-8")
    hosts: list[subprocess.Popen[bytes]] = []
    try:
        pilot.start_server("start", str(pilot.server.path), str(folder / "plan.toml"))
        if apart:
            for name in names:
                pilot.start_site(name, "--until-done")
        else:
            homes = [str(pilot.site(name).path) for name in names]
            command = [sys.executable, "-P", "-m", "simulations.deployment.many_sites", *homes]
            hosts.append(subprocess.Popen(command))  # noqa: S603
        peak, processor = _watch(pilot)
    finally:
        pilot.close()
        for host in hosts:
            host.kill()
            host.wait()
    (run,) = pilot.server.runs.iterdir()
    return RunFolder(run), peak, processor


def _configure(pilot: Pilot, plan: Plan) -> None:
    own = pilot.folder / "test"
    own.mkdir()
    files, test = write_site_data(plan, {name: pilot.site(name).path for name in pilot.sites}, own)
    pilot.configure_server({}, test)
    budget = {"unit": "record", "trust": "local", "epsilon": plan.privacy.epsilon or 1.0, "delta": plan.privacy.delta}
    for name in pilot.sites:
        pilot.configure_site(
            name,
            {
                "budget": [budget],
                "release": {"entrust": [FEDERATION], "statement": "full"},
                "approval": {"plans": "policy"},
                "schedule": {"on_battery": True},
            },
            files[name],
        )


def _watch(pilot: Pilot) -> tuple[int, float]:
    """Wait for the server to end; its peak memory and processor time."""
    process = psutil.Process(pilot.processes["server"].pid)
    peak, processor, deadline = 0, 0.0, time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
            peak = max(
                peak, *(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0
            )
            times = process.cpu_times()
            processor = times.user + times.system
        except (OSError, psutil.Error):
            pass
        try:
            code = pilot.wait("server", 0.2)
        except RunError:
            continue
        if code != 0:
            raise RunError(f"the server ended with exit {code}\n{pilot.output('server')[-3000:]}")
        return peak, processor
    raise RunError(f"the server is not over after {_PATIENCE:.0f} s\n{pilot.output('server')[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
