"""A ClientApp whose process dies once in the middle of a task, by client id: before, while and after it is paid for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client import app as good
from client import private_trainer
from client.guard import Guard

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Client 3 dies before it is charged, 5 while it trains, 7 after it has committed; each of them once."""
    client = str(context.node_config["client-id"])
    if client == "3":
        _die_once(client)
    kept = private_trainer.train_private, Guard.release
    if client == "5":
        private_trainer.train_private = _after_dying(client, private_trainer.train_private)
    if client == "7":
        Guard.release = _before_dying(client, Guard.release)  # type: ignore[method-assign]
    try:
        return good.train(message, context)
    finally:
        private_trainer.train_private, Guard.release = kept  # type: ignore[method-assign]


@app.query("statement")
def statement(message: Message, context: Context) -> Message:
    """As ever."""
    return good.statement(message, context)


def _die_once(client: str) -> None:
    marker = Path(os.environ["VEIL_TEST_MARKER"]).with_name(f"mortal-{client}")
    if not marker.exists():
        marker.touch()
        os._exit(1)


def _after_dying(client: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> Any:
        _die_once(client)
        return work(*arguments, **named)

    return dying


def _before_dying(client: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> Any:
        found = work(*arguments, **named)
        _die_once(client)
        return found

    return dying
