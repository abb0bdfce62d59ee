"""What deployment costs: real processes on loopback, mutual TLS, ledgers that wait for the disk.

python -m simulations.benchmarks.deployment phases      # 4 sites, 100 rounds: seconds of a whole round
python -m simulations.benchmarks.deployment sites       # 200 sites at one server: its memory and processor time
python -m simulations.benchmarks.deployment model       # a 100 MB model to 8 sites: the server's peak memory
python -m simulations.benchmarks.deployment secure      # 10 sites, 30 rounds: what secure sums add to plain ones
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    parser.add_argument("what", choices=("phases", "sites", "model", "secure"))
    parser.add_argument("--sites", type=int, default=None, help="how many")
    parser.add_argument("--rounds", type=int, default=None)
    given = parser.parse_args(arguments)
    measure = {"phases": phases, "sites": sites, "model": model, "secure": secure}[given.what]
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


def secure(folder: Path, *, sites: int = 10, rounds: int = 30) -> str:
    """The same training as secure sums and without privacy, in turns: half of the plain rounds before, half after."""
    both = (f"data.partition={{ kind = 'iid', clients = {sites} }}", "model.name=mlp", "privacy.unit=client")
    halves = (rounds - rounds // 2, rounds // 2)
    plain = [
        resolve(find_plan("digits", (*both, f"name=plain-{half}", "privacy.trust=none", f"federation.rounds={count}")))
        for half, count in enumerate(halves, start=1)
    ]
    distributed = ("name=secure", "privacy.trust=distributed", f"federation.rounds={rounds}")
    plan = resolve(find_plan("digits", (*both, *distributed)))
    pilot = _provision(folder, [plain[0], plan, plain[1]], sites)
    _watch_all(pilot, apart=True)
    runs = {path.name: RunFolder(path) for path in pilot.server.runs.iterdir()}

    def of(*plans: Plan) -> Rounds:
        names = [next(name for name in runs if name.startswith(one.name)) for one in plans]
        return Rounds.of(pilot, [runs[name] for name in names], [one.digest() for one in plans])

    without, with_ = of(*plain), of(plan)
    added = [_at(with_.whole, share) - _at(without.whole, share) for share in (0.5, 0.95)]
    sums = plan.secure_parameters()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return "\n".join(
        [
            f"{sites} sites, {rounds} rounds each way, {plan.secure.dimension} numbers in a ring of {plan.secure.bits} "
            f"bits; {sums.holders} holders, threshold {sums.threshold}; load at the end {load}",
            f"{'seconds: median, 95 %':22}{'whole round':>18}{'slowest training':>18}{'all beside it':>18}"
            f"{'short phases':>18}",
            f"{'plain sums':22}{without.text()}",
            f"{'secure sums':22}{with_.text()}",
            f"{'secure sums add':22}{added[0]:9.3f}{added[1]:9.3f}",
            f"bytes a site and round: {without.down / sites:.0f} down, {without.up / sites:.0f} up; in secure sums "
            f"{with_.down / sites:.0f} down, {with_.up / sites:.0f} up",
            f"updates in a secure round: {with_.fewest} at least",
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What the rounds of some runs took.

    Attributes:
        whole: seconds of each, as the server counts: everything from the first message to the evaluation.
        training: of each the seconds of the site that took longest to answer with its update; ledger, noise and masks
            included.
        short: of each the seconds that the site with most was at work in the short phases; none in plain sums.
        down, up: bytes of a round, all sites together.
        fewest: updates of the round with fewest.
    """

    whole: tuple[float, ...]
    training: tuple[float, ...]
    short: tuple[float, ...]
    down: float
    up: float
    fewest: int

    @classmethod
    def of(cls, pilot: Pilot, runs: Sequence[RunFolder], digests: Sequence[str]) -> Rounds:
        """Read what the server and the sites have written down."""
        lines = [line for run in runs for line in run.read_metrics()]
        training: dict[tuple[str, int], float] = {}
        short: dict[tuple[str, int], float] = {}
        for site in pilot.sites:
            own: dict[tuple[str, int], float] = {}
            for digest, number, kind, seconds in _answered(pilot.site(site).log):
                key = digest, number
                if kind == "train":
                    training[key] = max(training.get(key, 0.0), seconds)
                else:
                    own[key] = own.get(key, 0.0) + seconds
            short |= {key: max(short.get(key, 0.0), seconds) for key, seconds in own.items()}
        keys = [
            (digest, int(line["round"]))
            for run, digest in zip(runs, digests, strict=True)
            for line in run.read_metrics()
        ]
        return cls(
            whole=tuple(float(line["seconds"]) for line in lines),
            training=tuple(training[key] for key in keys),
            short=tuple(short.get(key, 0.0) for key in keys),
            down=statistics.mean(int(line["bytes_down"]) for line in lines),
            up=statistics.mean(int(line["bytes_up"]) for line in lines),
            fewest=min(int(line["updates"]) for line in lines),
        )

    def text(self) -> str:
        """Medians and 95 %."""
        beside = [whole - training for whole, training in zip(self.whole, self.training, strict=True)]
        columns = (self.whole, self.training, beside, self.short)
        return "".join(f"{_at(column, 0.5):9.3f}{_at(column, 0.95):9.3f}" for column in columns)


def _answered(log: Path) -> list[tuple[str, int, str, float]]:
    """Plan, round, kind and seconds of each task of rounds that a site answered, of its log."""
    digest, found = "", []
    for line in log.read_text(encoding="utf-8").splitlines():
        event: Mapping[str, Any] = json.loads(line)
        if event["event"] == "offer":
            digest = event["digest"]
        elif event["event"] == "answered" and "round" in event:
            found.append((digest, event["round"], event["kind"], event["seconds"]))
    return found


def _at(values: Sequence[float], share: float) -> float:
    """The value that this share of all is below; at one half the median."""
    return statistics.median(values) if share == 0.5 else sorted(values)[min(len(values) - 1, int(share * len(values)))]


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
    pilot = _provision(folder, [plan], sites)
    peak, processor = _watch_all(pilot, apart=apart)
    (run,) = pilot.server.runs.iterdir()
    return RunFolder(run), peak, processor


def _provision(folder: Path, plans: Sequence[Plan], sites: int) -> Pilot:
    """A federation that may play these plans, of the same clients; the plans lie in its folder, in order."""
    pilot = Pilot.provision(folder, [f"{number:0{len(str(sites - 1))}}" for number in range(sites)])
    _configure(pilot, plans)
    for number, plan in enumerate(plans):
        (folder / f"plan-{number}.toml").write_text(write_plan(plan), encoding="utf-8")
    return pilot


def _watch_all(pilot: Pilot, *, apart: bool) -> tuple[int, float]:
    """Start everybody, and wait for the end; the server's peak memory and processor time."""
    hosts: list[subprocess.Popen[bytes]] = []
    try:
        pilot.start_server("start", str(pilot.server.path), *map(str, sorted(pilot.folder.glob("plan-*.toml"))))
        if apart:
            for name in pilot.sites:
                pilot.start_site(name, "--until-done")
        else:
            homes = [str(pilot.site(name).path) for name in pilot.sites]
            command = [sys.executable, "-P", "-m", "simulations.deployment.many_sites", *homes]
            hosts.append(subprocess.Popen(command))  # noqa: S603
        return _watch(pilot)
    finally:
        pilot.close()
        for host in hosts:
            host.kill()
            host.wait()


def _configure(pilot: Pilot, plans: Sequence[Plan]) -> None:
    own = pilot.folder / "test"
    own.mkdir()
    files, test = write_site_data(plans[0], {name: pilot.site(name).path for name in pilot.sites}, own)
    pilot.configure_server({}, test)
    budgets = [
        {
            "unit": plan.balance.unit,
            "trust": plan.balance.trust,
            "epsilon": plan.privacy.epsilon,
            "delta": plan.privacy.delta,
        }
        for plan in plans
        if plan.is_private
    ]
    for name in pilot.sites:
        pilot.configure_site(
            name,
            {
                "budget": budgets,
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
