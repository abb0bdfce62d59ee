"""The client that the ledger's proof kills: a worker like a simulation's, in a process of its own."""

from __future__ import annotations

from multiprocessing.connection import Connection

import torch
from flwr.app import RecordDict

from client.datasets.registry import load
from shared_models.flower_messages import act_as_server
from shared_models.plan_data import DataPlan
from simulations.worker import DEFAULT_APP, Worker

# This module is loaded once and its process forked for each client: threads of torch's would not come along.
torch.set_num_threads(1)
load(DataPlan(), split_key=b"warm")  # so that a new process has only its own work to do


def serve(link: Connection, plan_text: str, ledger: str) -> None:
    """Answer requests until killed."""
    act_as_server(1)
    worker = Worker(DEFAULT_APP, 1, {"plan": plan_text, "ledger": ledger})
    while True:
        metadata, content = link.recv()
        reply, _ = worker.handle(metadata, content, "0", RecordDict())
        link.send(reply)
