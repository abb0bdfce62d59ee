"""Veil's ServerApp and ClientApp for Flower's own engine: they only find the plan and call the installed packages."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client import app as veil_client
from client.books import create_simulated
from security.errors import RunError, UsageError
from server.app import ServerJob, lead
from server.claim import Remark
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from shared_models.resolve import resolve
from simulations.run import load_data, virtual_identities
from simulations.scenarios import find_plan

client = ClientApp()
server = ServerApp()

_CODE_FROM_THE_SERVER = Remark(
    code="own-code", text="under Flower's own engine the server brings the code that runs beside the data (rule 7)"
)


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train for one round."""
    return veil_client.train(message, _with_plan(context))


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Judge a model on what this client holds out."""
    return veil_client.evaluate(message, _with_plan(context))


@client.query("identify")
def identify(message: Message, context: Context) -> Message:
    """Tell the stable id behind this node."""
    return veil_client.identify(message, _with_plan(context))


@client.query("statement")
def statement(message: Message, context: Context) -> Message:
    """Say, signed, what was spent."""
    return veil_client.statement(message, _with_plan(context))


@client.query("personalise")
def personalise(message: Message, context: Context) -> Message:
    """Make of the last shared model what is the client's own."""
    return veil_client.personalise(message, _with_plan(context))


@client.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    """Take part in an attempt at a secure sum."""
    return veil_client.secure_keys(message, _with_plan(context))


@client.query("secure_shares")
def secure_shares(message: Message, context: Context) -> Message:
    """Share the attempt's secrets."""
    return veil_client.secure_shares(message, _with_plan(context))


@client.query("secure_survivors")
def secure_survivors(message: Message, context: Context) -> Message:
    """Confirm whose vectors are in the sum."""
    return veil_client.secure_survivors(message, _with_plan(context))


@client.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    """Give what takes the masks off the sum."""
    return veil_client.secure_unmask(message, _with_plan(context))


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run and write its folder."""
    plan, folder = _plan_of(context), _folder(context)
    test, clients = load_data(plan)
    folder.create(plan)
    with folder.locked():
        create_simulated(
            folder.ledger
        )  # before anybody is asked: the clients, processes of this machine, find it there
        job = ServerJob(
            plan=plan,
            folder=folder,
            test=test,
            withdrawn=(_CODE_FROM_THE_SERVER,),
            identities=virtual_identities(plan, folder.ledger, clients),
        )
        outcome = lead(job, grid)
    if outcome.stopped == "failed":
        raise RunError(f"{folder.path}: {outcome.reason}")


def _with_plan(context: Context) -> Context:
    """The same context, with the resolved plan in place of its name, and where the run's ledger is."""
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config=context.node_config,
        state=context.state,
        run_config={"plan": write_plan(_plan_of(context)), "ledger": str(_folder(context).ledger)},
    )


def _folder(context: Context) -> RunFolder:
    """The run's folder, the same for server and clients, whose processes may have working folders of their own.

    Raises:
        UsageError: it is not absolute.
    """
    out = Path(str(context.run_config["out"])).expanduser()
    if out == Path():
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        return RunFolder(state / "veil" / "flower" / str(context.run_id))
    if not out.is_absolute():
        raise UsageError(
            f"out = {str(out)!r}: give an absolute path; Flower's processes have working folders of their own"
        )
    return RunFolder(out)


def _plan_of(context: Context) -> Plan:
    return _plan(str(context.run_config["plan"]), str(context.run_config["set"]))


@lru_cache(maxsize=2)
def _plan(name: str, overrides: str) -> Plan:
    return resolve(find_plan(name, overrides.split()))
