"""From provisioning to report in one command: a server and four hospitals as processes of this machine.

    python -m simulations.deployment.demo [--out FOLDER]

Two plans are played in turn over mutual TLS: one without privacy, whose model must be the simulation's bit for bit, and
one with it, whose accounting must be the simulation's. Three hospitals approve plans by their policy; one asks its
owner, who says yes by `veil client approve`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from privacy.ledger import Ledger
from security.errors import RunError, UsageError
from server.run_folder import RunFolder, read_parameters
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.deployment.pilot import FEDERATION, Pilot
from simulations.deployment.site_data import write_site_data
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

HOSPITALS: Final = ("cleveland", "hungary", "switzerland", "va-long-beach")
ASKING: Final = "cleveland"
PLANS: Final = ("hospitals-plain", "hospitals")
OVERRIDES: Final = ("evaluation.baselines=false",)
_PATIENCE: Final = 240.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Play the demonstration; 0 if everything is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="folder [default: runs/deploy-demo-TIME]")
    folder = parser.parse_args(arguments).out or Path("runs") / f"deploy-demo-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        return play(folder.absolute())
    except (RunError, UsageError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def play(folder: Path) -> int:
    """Provision, run and compare, in a new folder."""
    begun = time.monotonic()
    plans = [resolve(find_plan(name, OVERRIDES)) for name in PLANS]

    def say(text: str) -> None:
        print(f"{time.monotonic() - begun:6.1f} s  {text}", flush=True)

    pilot = Pilot.provision(folder, HOSPITALS)
    say(f"provisioned: an authority, a server and {len(HOSPITALS)} sites in {folder}")
    configure(pilot, plans)
    say("each site has its own records, key, policy, budget and ledger; nothing of it is the server's")
    try:
        overrides = [part for override in OVERRIDES for part in ("--set", override)]
        pilot.start_server("start", str(pilot.server.path), *PLANS, *overrides)
        for name in HOSPITALS:
            pilot.start_site(name, "--until-done")
        for plan in plans:
            _approve(pilot, plan)
            say(f"{plan.name}: the owner of {ASKING} has approved it")
        for name in ("server", *HOSPITALS):
            code = pilot.wait(name, _PATIENCE)
            if code != 0:
                raise RunError(f"{name}: exit {code}\n{pilot.output(name)[-3000:]}")
    finally:
        pilot.close()
    say("both plans are played, server and sites have ended")
    for line in _peaks(pilot):
        say(line)
    good = True
    for plan, run in zip(plans, _runs(pilot), strict=True):
        for fine, text in _compare(pilot, plan, run, folder):
            say(f"{'ok   ' if fine else 'WRONG'} {text}")
            good = good and fine
        say(f"report: {run.report}")
    return 0 if good else 1


def configure(pilot: Pilot, plans: Sequence[Plan]) -> None:
    """Give server and sites their data, and each site a policy that allows these plans."""
    own = pilot.folder / "server" / "data"
    own.mkdir(parents=True, exist_ok=True)
    for name in pilot.sites:
        (pilot.site(name).path / "data").mkdir(parents=True, exist_ok=True)
    files, test = write_site_data(plans[0], {name: pilot.site(name).path / "data" for name in pilot.sites}, own)
    pilot.configure_server({}, test)
    for name in pilot.sites:
        pilot.configure_site(name, policy(name, plans), files[name])


def policy(site: str, plans: Sequence[Plan]) -> dict[str, Any]:
    """Tables of `site.toml`: a budget for what is private among the plans, and trust in the pilot's server."""
    budgets = {
        (plan.balance.unit, plan.balance.trust): {
            "unit": plan.balance.unit,
            "trust": plan.balance.trust,
            "epsilon": plan.privacy.epsilon,
            "delta": plan.privacy.delta,
        }
        for plan in plans
        if plan.is_private
    }
    return {
        "budget": list(budgets.values()),
        "allow": {"federations": [FEDERATION], "models": sorted({plan.model.name for plan in plans})},
        "release": {"entrust": [FEDERATION], "counts": True, "statistics": True, "statement": "full"},
        "approval": {"plans": "ask" if site == ASKING else "policy"},
        "schedule": {"on_battery": True},
    }


def _approve(pilot: Pilot, plan: Plan) -> None:
    """Say yes to a plan as its owner would, once the server has offered it."""
    home, deadline = pilot.site(ASKING), time.monotonic() + _PATIENCE
    while not list(home.pending.glob(f"*{plan.digest()[:16]}*")):
        if time.monotonic() > deadline:
            raise RunError(f"{plan.name} was never offered to {ASKING}\n{pilot.output('server')[-2000:]}")
        with contextlib.suppress(RunError):
            code = pilot.wait("server", 0.2)
            raise UsageError(f"the server ended early (exit {code})\n{pilot.output('server')[-3000:]}")
    pilot.veil("client", "approve", str(home.path), plan.digest(), "--yes")


def _peaks(pilot: Pilot) -> list[str]:
    """What each process says of its memory."""
    return [
        f"{name}: {line.strip()}"
        for name in ("server", *HOSPITALS)
        for line in pilot.output(name).splitlines()
        if "memory" in line
    ]


def _runs(pilot: Pilot) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted(pilot.server.runs.iterdir(), key=lambda path: path.stat().st_mtime)]


def _compare(pilot: Pilot, plan: Plan, run: RunFolder, folder: Path) -> list[tuple[bool, str]]:
    """The deployed run beside a simulation of the same plan and seed."""
    simulated, _ = start_run(plan, folder / "simulated" / plan.name, Settings(engine="inline"))
    here, there = run.read_summary(), simulated.read_summary()
    found = [
        (
            here["stopped"] is None and here["rounds"] == plan.federation.rounds and not here["faults"],
            f"{plan.name}: {here['rounds']} rounds, {len(here['faults'])} faults, {plan.evaluation.metric} "
            f"{here['final'][plan.evaluation.metric]:.4f} (simulated {there['final'][plan.evaluation.metric]:.4f})",
        )
    ]
    if not plan.is_private:
        ours, theirs = read_parameters(run.model), read_parameters(simulated.model)
        largest = max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)
        found.append(
            (
                ours.keys() == theirs.keys() and largest == 0.0,
                f"the model is the simulation's: largest difference {largest}",
            )
        )
        return found
    told = {row["id"]: row for row in here["privacy"]["clients"]}
    for row in there["privacy"]["clients"]:
        mine = told[row["id"]]
        with Ledger.open(pilot.site(row["id"]).ledger, read_only=True) as ledger:
            (scope,) = ledger.scopes()
            account = ledger.account(scope, plan.balance)
        charged = sum(count for own in account.plans if own.plan == plan.digest() for _, count in own.charged)
        same = (mine["epsilon"], mine["charged_rounds"]) == (row["epsilon"], row["charged_rounds"])
        found.append(
            (
                same and charged == row["charged_rounds"] and mine["statement"] == "verified",
                f"{row['id']}: epsilon {mine['epsilon']:.4f} (simulated {row['epsilon']:.4f}), {charged} charges in "
                f"its ledger, statement {mine['statement']}",
            )
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
