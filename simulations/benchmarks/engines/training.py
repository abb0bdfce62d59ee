"""Local training as anybody would write it in PyTorch: what floor and Flower's clients do, and the networks of all.

The networks are Veil's own classes, which are plain torch modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from shared_models import cnn, convnet, mlp
from simulations.benchmarks.engines.works import CLASSES, CLIPPING_NORM, NOISE_MULTIPLIER, Model, Work

_BUILDERS: Mapping[Model, tuple[type[Any], Callable[[Any, tuple[int, ...], int], nn.Module]]] = {
    "cnn": (cnn.CnnConfig, cnn.build),
    "convnet": (convnet.ConvnetConfig, convnet.build),
    "mlp": (mlp.MlpConfig, mlp.build),
}


def network(work: Work, *, seed: int) -> nn.Module:
    """The work's network with new weights; reseeds torch."""
    config, build = _BUILDERS[work.model]
    torch.manual_seed(seed)
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in work.options.items()}
    return build(config(**options), work.shape, CLASSES)


def load_arrays(path: str | Path) -> tuple[Tensor, Tensor]:
    """Examples (n, *shape) as float32 and labels (n,) as int64; bytes become [0, 1], as in Veil's loader."""
    with np.load(path, allow_pickle=False) as archive:
        x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"].astype(np.int64))
    return (x.float().div_(255) if x.dtype == torch.uint8 else x.float()), y


def rows_of(user: int, work: Work) -> slice:
    """Where a user's records are."""
    return slice(user * work.records, (user + 1) * work.records)


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector, a copy."""
    return parameters_to_vector(model.parameters()).detach()


def set_flat(model: nn.Module, vector: Tensor) -> None:
    """Overwrite all parameters; the vector stays its owner's."""
    sizes = [parameter.numel() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), torch.split(vector, sizes), strict=True):
            parameter.copy_(part.view_as(parameter))


def train(model: nn.Module, x: Tensor, y: Tensor, work: Work, *, seed: int) -> None:
    """One round of one client: an epoch of SGD, in place.

    Args:
        model: has the shared model's parameters; is changed.
        x: examples (n, *shape).
        y: labels (n,).
        work: says how.
        seed: of the order of batches and of dropout; of a private round's sampling and noise too.
    """
    torch.default_generator.manual_seed(seed)  # torch.manual_seed asks for GPUs first, which takes as long as a step
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=work.learning_rate)
    if work.private:
        _train_private(model, x, y, work, optimizer)
        return
    for batch in torch.split(torch.randperm(len(x)), work.batch):
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(x[batch]), y[batch]))
        optimizer.step()


def _train_private(model: nn.Module, x: Tensor, y: Tensor, work: Work, optimizer: torch.optim.Optimizer) -> None:
    """DP-SGD by Opacus' hooks, prepared once for each client and round, as in Flower's and Opacus' own examples."""
    from opacus import PrivacyEngine

    made: tuple[Any, Any, Any] = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=work.batch),
        noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=CLIPPING_NORM,
    )
    private, optimizer, loader = made
    for examples, labels in loader:
        optimizer.zero_grad()
        torch.autograd.backward(functional.cross_entropy(private(examples), labels))
        optimizer.step()
    private.cleanup()  # the model is another client's next
