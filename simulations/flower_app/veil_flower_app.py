"""Veil's ServerApp and ClientApp for Flower's own engine: they only find the plan and call the installed packages."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client import app as veil_client
from client.datasets.registry import load
from client.workplace import split_key
from security.errors import RunError
from server.app import ServerJob, lead
from server.evaluation import TestData
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.resolve import resolve
from simulations.scenarios import find_plan

client = ClientApp()
server = ServerApp()

_CODE_FROM_THE_SERVER = "under Flower's own engine the server brings the code that runs beside the data (rule 7)"


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round."""
    return veil_client.train(message, _with_plan(context))


@client.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Tell the stable id behind this node."""
    return veil_client.identify(message, _with_plan(context))


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run and write its folder."""
    plan = _plan(str(context.run_config["plan"]), str(context.run_config["set"]))
    out = str(context.run_config["out"]) or f"runs/{plan.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder = RunFolder(Path(out))
    folder.create(plan)
    test = load(plan.data, split_key=split_key(plan)).test
    job = ServerJob(plan=plan, folder=folder, test=TestData(test.x, test.y), withdrawn=(_CODE_FROM_THE_SERVER,))
    outcome = lead(job, grid)
    if outcome.stopped == "failed":
        raise RunError(f"{folder.path}: {outcome.reason}")


def _with_plan(context: Context) -> Context:
    """The same context, with the resolved plan in place of its name; the state stays the one Flower keeps."""
    plan = _plan(str(context.run_config["plan"]), str(context.run_config["set"]))
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=context.state,
        run_config={"plan": write_plan(plan)},
    )


@lru_cache(maxsize=2)
def _plan(name: str, overrides: str) -> Plan:
    return resolve(find_plan(name, overrides.split()))
