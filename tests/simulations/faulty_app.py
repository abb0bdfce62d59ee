"""A ClientApp whose clients fail on purpose, by client id, for tests of the grids and the federation."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from client import app as good
from shared_models.protocol import ARRAYS, METRICS

app = ClientApp()

SECRET = "patient 4711 has the disease"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Client 1 raises, 2 sends wrong shapes, 3 wrong names, 4 NaN, 5 a field too many, 6 dies always, 7 dies once."""
    client = str(context.node_config["client-id"])
    if client == "1":
        raise RuntimeError(SECRET)
    if client == "6":
        os._exit(1)
    marker = Path(os.environ.get("VEIL_TEST_MARKER", "/nonexistent/marker"))
    if client == "7" and marker.parent.is_dir() and not marker.exists():
        marker.touch()
        os._exit(1)
    reply = good.train(message, context)
    arrays = reply.content.array_records[ARRAYS]
    metrics = reply.content.metric_records[METRICS]
    if client == "2":
        arrays = ArrayRecord({name: Array(np.zeros(3, dtype=np.float32)) for name in arrays})
    if client == "3":
        arrays = ArrayRecord({f"other.{name}": array for name, array in arrays.items()})
    if client == "4":
        arrays = ArrayRecord({name: Array(array.numpy() * np.float32(np.nan)) for name, array in arrays.items()})
    if client == "5":
        metrics = MetricRecord({**metrics, "mean-age": 54.0})
    return Message(RecordDict({**reply.content, ARRAYS: arrays, METRICS: metrics}), reply_to=message)
