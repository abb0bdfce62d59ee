"""The usual ClientApp, which notes on which node of a Ray cluster each client trained; on a doomed node one hangs."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import app as good
from client import private_trainer
from shared_models.protocol import CONFIG, ROUND

app = ClientApp()

DOOMED = "VEIL_TEST_DOOMED"
"""In the environment of one node's processes: a named pipe, which asks for the node's end where it exists."""

LAST_ROUND = 2
"""In which a doomed node hangs."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Note who trains where; on a doomed node, ask for its end once the books are charged, and wait for it."""
    import ray

    ledger = Path(str(context.run_config["ledger"]))
    number, client = message.content.config_records[CONFIG][ROUND], context.node_config["client-id"]
    with ledger.with_name("places.log").open("a") as places:
        places.write(f"{ray.get_runtime_context().get_node_id()} {number} {client}\n")
    pipe = Path(os.environ.get(DOOMED, "/nonexistent/pipe"))
    if number != LAST_ROUND or not pipe.is_fifo():
        return good.train(message, context)

    def hanging(*arguments: object, **named: object) -> NoReturn:
        pipe.write_text(f"{client}\n")  # waits until somebody reads
        while True:
            signal.pause()

    private_trainer.train_private = hanging
    return good.train(message, context)


@app.query("statement")
def statement(message: Message, context: Context) -> Message:
    """As ever."""
    return good.statement(message, context)
