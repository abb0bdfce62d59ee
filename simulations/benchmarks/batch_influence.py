"""How far the rest of its batch moves an example's clipped gradient, by rounding alone, on the CPU.

The sensitivity of a private step takes an example's clipped gradient to be its own. Kernels add up in another order
for another size of batch, so in float32 it is so only up to rounding. Nothing proves a bound: a ReLU at its kink may
switch. So every claim says what was measured (`privacy.report.conditions.BATCH_INFLUENCE`).

python -m simulations.benchmarks.batch_influence [--precision bfloat16]
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn.functional import cross_entropy

from client.datasets.registry import load
from privacy.dpsgd.engine import private_hooks
from privacy.dpsgd.optimizer import as_rows, per_example_gradients
from privacy.dpsgd.precision import Precision, outputs
from shared_models.cards import card_for
from shared_models.plan_data import DataPlan
from shared_models.registry import build

NORMS = (10.0, 1.0, 0.1, 0.01)
"""Clipping norms tried."""

_BATCHES = (2, 3, 5, 8, 16, 17, 33, 64, 65)
_EPOCHS = (0, 1, 4, 8, 12)  # of training without privacy before a measurement: a network that has learnt rounds worse
_SEEDS = (0, 1, 2, 3)
_EXAMPLES = 24

_OF_IMAGES = ("cnn", "convnet", "inception", "linear", "mlp", "resnet", "vit")


def measure(
    networks: Iterable[str],
    seeds: Sequence[int] = _SEEDS,
    epochs: Sequence[int] = _EPOCHS,
    precision: Precision = "float32",
) -> dict[tuple[str, float], NDArray[np.float64]]:
    """L2 distances between an example's clipped gradient alone and in a batch, over the clipping norm.

    Args:
        networks: names of built-in networks; they learn the digits.
        seeds: of weights and batches.
        epochs: after how many epochs of training to measure, ascending.
        precision: what the networks compute gradients in.

    Returns:
        By network and clipping norm: one distance for each seed, epoch, batch and example.
    """
    plan = DataPlan(name="digits")
    card, data = card_for(plan), load(plan, split_key=bytes(32)).train
    found: dict[tuple[str, float], list[NDArray[np.float64]]] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in networks:
            for seed in seeds:
                model = build(name, {}, form=card.form, seed=seed).train()
                draw = torch.Generator().manual_seed(seed)
                for alone, among in _pairs(model, data.x, data.y, epochs, draw, precision):
                    for norm in NORMS:
                        distances = vector_norm(_clipped(alone, norm) - _clipped(among, norm), dim=1) / norm
                        found.setdefault((name, norm), []).append(distances.numpy())
    finally:
        torch.set_num_threads(threads)
    return {key: np.concatenate(values) for key, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.batch_influence")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    found = measure(_OF_IMAGES, precision=parser.parse_args(arguments).precision)
    print(f"{'99 of 100':>10} {'most':>10}  of the clipping norm: what rounding moves with the rest of the batch")
    for (name, norm), distances in found.items():
        print(f"{np.quantile(distances, 0.99):>10.1e} {distances.max():>10.1e}  {name}, clipping norm {norm:g}")
    every = np.concatenate(list(found.values()))
    print(f"{np.quantile(every, 0.99):>10.1e} {every.max():>10.1e}  all")


def _pairs(
    model: nn.Module, x: Tensor, y: Tensor, epochs: Sequence[int], draw: torch.Generator, precision: Precision
) -> Iterator[tuple[Tensor, Tensor]]:
    """Gradients of the same examples, each alone and all in one batch, while the network learns."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(max(epochs) + 1):
        if epoch in epochs:
            batch = torch.randperm(len(x), generator=draw)[: max(_BATCHES)]
            alone = torch.cat(
                [_gradients(model, x[one], y[one], precision) for one in torch.split(batch[:_EXAMPLES], 1)]
            )
            for size in _BATCHES:
                among = _gradients(model, x[batch[:size]], y[batch[:size]], precision)[:_EXAMPLES]
                yield alone[: len(among)], among
        for some in torch.split(torch.randperm(len(x), generator=draw), 64):
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(x[some]), y[some]))
            optimizer.step()


def _gradients(model: nn.Module, x: Tensor, y: Tensor, precision: Precision) -> Tensor:
    """Of shape (examples, parameters), as a private step computes them; float64."""
    with private_hooks(model):
        torch.autograd.backward(cross_entropy(outputs(model, x, precision), y, reduction="sum"))
        parts = [as_rows(part) for part in per_example_gradients(list(model.parameters()))]
    return torch.cat(parts, dim=1).double()


def _clipped(gradients: Tensor, norm: float) -> Tensor:
    factors: Tensor = (norm / vector_norm(gradients, dim=1, keepdim=True)).clamp(max=1.0)
    return gradients * factors


if __name__ == "__main__":
    main()
