"""Flower's own simulation engine, with an app as its tutorials have it: FedAvg over the Message API.

Its quickest reasonable configuration: as many actors as processes are asked for (`num_cpus` is 1 a client), no
evaluation, no dashboard, no logging; data and network are made once in each actor and kept, where the tutorials make
them anew for each client and round.
"""

from __future__ import annotations

import logging
import time
from functools import lru_cache

import flwr
import ray
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import Tensor, nn

from simulations.benchmarks.engines.floor import seed_of
from simulations.benchmarks.engines.playing import Played, Task
from simulations.benchmarks.engines.training import flat, load_arrays, network, rows_of, train

app = ClientApp()


@app.train()
def train_client(message: Message, context: Context) -> Message:
    """Train one client for one round."""
    config = message.content.config_records["config"]
    task, model, x, y = _place(str(config["task"]))
    user = int(str(context.node_config["partition-id"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    rows = rows_of(user, task.work)
    train(model, x[rows], y[rows], task.work, seed=seed_of(task, int(str(config["server-round"])), user))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": task.work.records}),
        }
    )
    return Message(content=content, reply_to=message)


@lru_cache(maxsize=1)
def _place(text: str) -> tuple[Task, nn.Module, Tensor, Tensor]:
    """What an actor keeps."""
    torch.set_num_threads(1)
    task = Task.from_text(text)
    return task, network(task.work, seed=task.seed), *load_arrays(task.data)


def play(task: Task) -> Played:
    """Play all rounds.

    Raises:
        RuntimeError: the engine ended before the last round.
    """
    imported = time.monotonic()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    work = task.work
    model = network(work, seed=task.seed)
    first, ends, updates = flat(model), list[float](), list[int]()
    server = ServerApp()

    def count(replies: list[RecordDict], _: str) -> MetricRecord:
        updates.append(len(replies))
        return MetricRecord({})

    def end_of_round(number: int, arrays: ArrayRecord) -> None:
        if number > 0:  # 0 is before the first
            ends.append(time.monotonic())
        if number == task.rounds:
            model.load_state_dict(arrays.to_torch_state_dict())

    @server.main()
    def main(grid: Grid, _: Context) -> None:
        strategy = FedAvg(
            fraction_train=work.cohort / work.users,
            fraction_evaluate=0.0,
            min_train_nodes=work.cohort,
            min_available_nodes=work.users,
            train_metrics_aggr_fn=count,
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=task.rounds,
            train_config=ConfigRecord({"task": task.to_text()}),
            evaluate_fn=end_of_round,
        )

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=work.users,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": task.processes, "include_dashboard": False, "log_to_driver": False},
        },
    )
    if len(ends) < task.rounds:
        raise RuntimeError(f"the engine ended after {len(ends)} of {task.rounds} rounds")
    return Played(
        imported=imported,
        rounds=ends,
        updates=updates,
        change=float((flat(model) - first).norm()),
        parameters=len(first),
        versions={"torch": str(torch.__version__), "flwr": flwr.__version__, "ray": ray.__version__},
    )
