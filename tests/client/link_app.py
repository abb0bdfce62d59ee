"""A ClientApp for tests of the link: it counts what it did, waits where it is told to, and remembers."""

from __future__ import annotations

import threading
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

begun: list[str] = []
"""Ids of the messages, in the order of work."""
contexts: list[Context] = []
entered = threading.Event()
"""Work has begun."""
go_on = threading.Event()
"""Work may end."""
work: list[Callable[[Message], RecordDict]] = []
"""What is to be done next, instead of the usual."""


def reset() -> None:
    begun.clear()
    contexts.clear()
    work.clear()
    entered.clear()
    go_on.set()


def usual(message: Message) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"epsilon": 0.5, "num-examples": 1})})


@app.train()
def train(message: Message, context: Context) -> Message:
    begun.append(message.metadata.message_id)
    contexts.append(context)
    entered.set()
    assert go_on.wait(30)
    content = (work.pop(0) if work else usual)(message)
    seen = int(context.state.config_records.get("memory", ConfigRecord({"seen": 0}))["seen"])  # type: ignore[arg-type]
    context.state["memory"] = ConfigRecord({"seen": seen + 1})
    return Message(content, reply_to=message)


@app.query("statement")
def statement(message: Message, context: Context) -> Message:
    begun.append(message.metadata.message_id)
    return Message(RecordDict({"config": ConfigRecord({"statement": "fine"})}), reply_to=message)


@app.query("secure_keys")
def secure_keys(message: Message, context: Context) -> Message:
    begun.append(message.metadata.message_id)
    return Message(RecordDict({"config": ConfigRecord({"secure-message": b"keys"})}), reply_to=message)


@app.query("secure_unmask")
def secure_unmask(message: Message, context: Context) -> Message:
    begun.append(message.metadata.message_id)
    return Message(RecordDict({"config": ConfigRecord({"secure-message": b"shares"})}), reply_to=message)
