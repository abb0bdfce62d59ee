"""The usual ClientApp with its clients out of step: each dawdles, and the first of all waits until another is done."""

from __future__ import annotations

import random
import time
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import app as good
from shared_models.protocol import CONFIG, ROUND

app = ClientApp()

FIRST = 0
"""Number of the client that begins a round, and is not to be the first to end it."""

_DAWDLE = 0.03  # seconds at most; nothing waits for it


def pipe_of(folder: Path, number: int) -> Path:
    """The named pipe of a round, in the run's folder; without one nobody waits for another."""
    return folder / f"round-{number}.pipe"


def order_of(folder: Path) -> dict[int, list[str]]:
    """In each round, the clients in the order in which they were done."""
    found: dict[int, list[str]] = {}
    for line in (folder / "order.log").read_text().splitlines():
        number, client = line.split()
        found.setdefault(int(number), []).append(client)
    return found


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train as ever, sooner or later."""
    folder = Path(str(context.run_config["ledger"])).parent
    number, client = int(str(message.content.config_records[CONFIG][ROUND])), str(context.node_config["client-id"])
    pipe = pipe_of(folder, number)
    time.sleep(_DAWDLE * random.Random(f"{number} {client}").random())
    if int(client) == FIRST and pipe.is_fifo():
        with pipe.open("rb", buffering=0) as done:
            done.read(1)
    reply = good.train(message, context)
    with (folder / "order.log").open("a") as log:
        log.write(f"{number} {client}\n")
    if pipe.is_fifo():
        with pipe.open("wb", buffering=0) as done:
            done.write(b".")
    return reply


@app.query("statement")
def statement(message: Message, context: Context) -> Message:
    """As ever."""
    return good.statement(message, context)
