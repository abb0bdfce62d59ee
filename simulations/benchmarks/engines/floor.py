"""The floor: a round in plain PyTorch and nothing else, which the others are measured by.

As many processes as are asked for each train a share of the cohort, one client after another, and add their updates up.
Data, model and sums are in shared memory; a message is a list of clients, or the word that they are done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.multiprocessing
from torch import Tensor

from simulations.benchmarks.engines.playing import Played, Task
from simulations.benchmarks.engines.training import flat, load_arrays, network, rows_of, set_flat, train


def play(task: Task) -> Played:
    """Play all rounds."""
    imported, ends, first = time.monotonic(), [], flat(network(task.work, seed=task.seed))
    last = first
    for model in models(task):
        ends.append(time.monotonic())
        last = model
    return Played(
        imported=imported,
        rounds=ends,
        updates=[task.work.cohort] * len(ends),  # a client that fails ends the whole run
        change=float((last - first).norm()),
        parameters=len(first),
        versions={"torch": str(torch.__version__)},
    )


def models(task: Task) -> Iterator[Tensor]:
    """The flat parameters (p,) after each round.

    Raises:
        RuntimeError: a process died; what it said is on standard error.
    """
    work = task.work
    x, y = load_arrays(task.data)
    model = flat(network(work, seed=task.seed))
    sums = torch.zeros(task.processes, len(model))
    for one in (x, y, model, sums):
        one.share_memory_()  # type: ignore[no-untyped-call]
    context: Any = torch.multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    workers = []
    try:
        for place in range(task.processes):
            ours, theirs = context.Pipe()
            workers.append(context.Process(target=_work, args=(task, (x, y), model, sums[place], theirs), daemon=True))
            workers[-1].start()
            theirs.close()  # so that a worker's death is the end of what we read
            pipes.append(ours)
        for number in range(1, task.rounds + 1):
            for pipe, share in zip(pipes, np.array_split(cohort(task, number), task.processes), strict=True):
                pipe.send((number, share.tolist()))
            for pipe in pipes:
                _wait(pipe)
            model += sums.sum(dim=0) / work.cohort
            yield model.clone()
    finally:
        for pipe in pipes:
            pipe.close()
        for worker in workers:
            worker.join()


def cohort(task: Task, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Who takes part in a round."""
    return np.random.default_rng([task.seed, number]).choice(task.work.users, task.work.cohort, replace=False)


def seed_of(task: Task, number: int, user: int) -> int:
    """Of a client's training in a round; another for each."""
    return (task.seed * 1_000_003 + number) * 1_000_003 + user


def _wait(pipe: Connection) -> None:
    """Until a process is done with its share."""
    try:
        pipe.recv()
    except EOFError:
        raise RuntimeError("a process of the floor died") from None


def _work(task: Task, data: tuple[Tensor, Tensor], shared: Tensor, total: Tensor, pipe: Connection) -> None:
    """A process: trains its share of each cohort until nobody sends one."""
    torch.set_num_threads(1)
    (x, y), work = data, task.work
    model = network(work, seed=task.seed)
    while True:
        try:
            number, users = pipe.recv()
        except EOFError:
            return
        total.zero_()
        for user in users:
            set_flat(model, shared)
            rows = rows_of(user, work)
            train(model, x[rows], y[rows], work, seed=seed_of(task, number, user))
            # All have as many records, so the mean over clients is the mean over examples that FedAvg is.
            total += flat(model) - shared
        pipe.send(len(users))
