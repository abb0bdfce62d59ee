"""Apple's pfl-research (arXiv 2404.06430), as its own CIFAR-10 benchmark uses it, in an environment of its own.

Several processes are started as its guide to distributed simulations says: each runs the whole script, told by
`PFL_WORKER_RANK` and `PFL_WORKER_ADDRESSES` who it is, trains its part of the cohort, and takes part in an all-reduce
(torch.distributed, gloo). Its batches are slices in the data's order, which it keeps: it doesn't shuffle.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import types
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from simulations.benchmarks.engines.playing import Played, Task
from simulations.benchmarks.engines.training import flat, load_arrays, network, rows_of

_ADDRESSES, _RANK = "PFL_WORKER_ADDRESSES", "PFL_WORKER_RANK"
_PATIENCE = 60.0  # seconds, for the others to end once the first has


def play(task: Task) -> Played:
    """Play all rounds, as one of the processes; the first starts the others.

    Raises:
        RuntimeError: another process failed.
    """
    others: list[subprocess.Popen[bytes]] = []
    if task.processes > 1 and _RANK not in os.environ:
        os.environ[_ADDRESSES] = ",".join(f"127.0.0.1:{port}" for port in _free_ports(task.processes))
        os.environ[_RANK] = "0"
        others = [_start(rank) for rank in range(1, task.processes)]
    try:
        found = _play(task)
        if any(other.wait(_PATIENCE) for other in others):
            raise RuntimeError("another process failed")
        return found
    finally:
        for other in others:
            other.kill()


def _play(task: Task) -> Played:
    # Only now: who it is among how many, pfl reads where it is imported.
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByUser
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    imported = time.monotonic()
    torch.set_num_threads(1)
    work, ends, updates = task.work, list[float](), list[int]()

    class Ends(TrainingProcessCallback):  # type: ignore[misc]
        """Notes when each round is over."""

        def after_central_iteration(
            self, aggregate_metrics: Any, model: Any, *, central_iteration: int
        ) -> tuple[bool, Any]:
            ends.append(time.monotonic())
            updates.append(int(next(value for key, value in aggregate_metrics if "number of devices" in str(key))))
            return False, Metrics()

    module = _with_loss(network(work, seed=task.seed))
    first = flat(module)
    np.random.seed(task.seed)  # pfl draws from it, and every process must draw the same
    x, y = load_arrays(task.data)
    slices = [(x[rows_of(user, work)], y[rows_of(user, work)]) for user in range(work.users)]
    users = FederatedDataset.from_slices(slices, get_user_sampler("random", range(work.users)))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,  # that is, in the first round alone; see `_with_loss`
            train_cohort_size=work.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByUser()]),
        model=PyTorchModel(
            model=module,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_learning_rate=work.learning_rate, local_num_epochs=1, local_batch_size=work.batch
        ),
        callbacks=[Ends()],
        send_metrics_to_platform=False,
    )
    return Played(
        imported=imported,
        rounds=ends,
        updates=updates,
        change=float((flat(module) - first).norm()),
        parameters=len(first),
        versions={"torch": str(torch.__version__), "pfl": version("pfl")},
    )


def _with_loss(module: nn.Module) -> nn.Module:
    """With the two methods that pfl asks of a network. Evaluation costs nothing: nobody else's rounds have any."""
    from pfl.metrics import Weighted

    def loss(self: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        self.train()
        return functional.cross_entropy(self(inputs), targets)

    def metrics(_: nn.Module, __: Tensor, targets: Tensor) -> dict[str, Any]:
        return {"examples": Weighted(len(targets), len(targets))}

    made: Any = module
    made.loss, made.metrics = types.MethodType(loss, module), types.MethodType(metrics, module)
    return module


def _start(rank: int) -> subprocess.Popen[bytes]:
    """This very command again, as another of the processes."""
    command = [sys.executable, "-m", "simulations.benchmarks.engines.contender", *sys.argv[1:]]
    return subprocess.Popen(command, env=os.environ | {_RANK: str(rank)}, stdout=subprocess.DEVNULL)  # noqa: S603


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on; only the first will be listened on."""
    found = [socket.socket() for _ in range(count)]
    try:
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]
    finally:
        for one in found:
            one.close()
