"""Plain local training: what a client does with its data in one round without noise.

The private way (`client.private_trainer`) shares model and schedule; it differs in how a batch is drawn and what a step
does with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from client.augment import augmented
from client.datasets.records import Records
from client.local_optimizer import LocalOptimizer
from privacy.dpsgd.precision import Precision, outputs
from security.errors import UsageError
from shared_models.loss import loss_of
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan
from shared_models.plan_augment import copies_of
from shared_models.schedule import learning_rate
from shared_models.seeds import derive_seed

_MOST_COPIES = 4096  # that are made at once: all of a batch's would take its memory so many times


def choose_device(wanted: str, precision: Precision = "float32") -> torch.device:
    """The device a plan asks for; `auto` takes a GPU if there is one.

    Raises:
        UsageError: the device isn't there, or doesn't compute in that precision.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("training.device = 'cuda': this machine has no usable CUDA device; allowed here: auto, cpu")
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UsageError("training.device = 'mps': this machine has no usable MPS device; allowed here: auto, cpu")
    # Torch by itself would emulate it slowly, or warn and compute in float32.
    if precision == "bfloat16" and (
        wanted == "mps" or (wanted == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False))
    ):
        raise UsageError(
            f"training.precision = 'bfloat16': not on this machine's {wanted} device; allowed here: float32, or "
            "training.device = 'cpu'"
        )
    return torch.device(wanted)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many threads: sums split otherwise have other roundings, on every grid the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train_plain(
    model: nn.Module,
    start: Parameters,
    records: Records,
    plan: Plan,
    *,
    round_number: int,
    client: str,
    correction: Parameters | None = None,
    anchor: Parameters | None = None,
) -> tuple[Parameters, float]:
    """Train without privacy on shuffled batches.

    Args:
        model: the plan's network on its device; its parameters are overwritten.
        start: the shared model.
        records: the client's own, at least one.
        plan: the resolved plan.
        round_number: from 1.
        client: stable id; order of batches and dropout follow from it, the round and the plan's seed.
        correction: added to the gradient of each step.
        anchor: what the proximal term pulls towards; default: `start`.

    Returns:
        The change of the parameters, and the mean loss over the examples seen.

    Raises:
        ValueError: the client has no records.
    """
    if len(records) == 0:
        raise ValueError("a client without records can't train")
    device = next(model.parameters()).device
    set_parameters(model, start)
    model.train()
    trained = trained_parameters(model)
    optimizer = LocalOptimizer(
        tuple(trained.values()),
        plan.training,
        learning_rate(plan, round_number),
        correction=None if correction is None else tensors_of(trained, correction),
        anchor=None if anchor is None else tensors_of(trained, anchor),
    )
    of, copies, total, seen = loss_of(plan), copies_of(plan), 0.0, 0
    with seeded(derive_seed(plan.seed, "dropout", round_number, client), device):
        for batch in batches_of(len(records), plan, round_number=round_number, client=client):
            optimizer.zero_grad()
            for part in parts_of(batch, plan):
                x, y = augmented(records.x[part].to(device), records.y[part].to(device), plan.training.augment)
                loss = of(outputs(model, x, plan.training.precision), y) / copies
                torch.autograd.backward(loss / len(batch))
                total += float(loss.detach())
            optimizer.step()
            seen += len(batch)
    return change_since(trained, start), total / seen


def batches_of(n: int, plan: Plan, *, round_number: int, client: str) -> Iterator[Tensor]:
    """Index batches of the plan's size: as many steps or passes as it asks, each pass in a new order."""
    size = min(plan.training.expected_batch_size, n)
    per_pass = math.ceil(n / size)
    steps = per_pass * plan.training.epochs if plan.training.epochs is not None else plan.training.local_steps
    generator = np.random.default_rng(derive_seed(plan.seed, "batches", round_number, client))
    order = np.empty(0, dtype=np.int64)
    for step in range(steps):
        place = step % per_pass
        if place == 0:
            order = generator.permutation(n)
        yield torch.from_numpy(order[place * size : (place + 1) * size])


def parts_of(batch: Tensor, plan: Plan) -> tuple[Tensor, ...]:
    """An index batch in parts that fit the memory."""
    return torch.split(batch, most_at_once(plan) or len(batch))


def most_at_once(plan: Plan) -> int | None:
    """How many records fit the memory with all their copies; None for any number."""
    most, copies = plan.training.max_physical_batch, copies_of(plan)
    if copies == 1:
        return most
    return max(1, min(most or _MOST_COPIES, _MOST_COPIES) // copies)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's own generators (dropout) follow from the seed inside, and are as before outside."""
    devices = [device] if device.type in ("cuda", "mps") else []
    with torch.random.fork_rng(devices=devices, device_type=device.type if devices else "cuda"):
        # Not torch.manual_seed: that would also reseed devices whose state isn't put back.
        torch.default_generator.manual_seed(seed)
        if devices:
            getattr(torch, device.type).manual_seed(seed)
        yield


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def tensors_of(trained: Mapping[str, nn.Parameter], values: Parameters) -> tuple[Tensor, ...]:
    """Values beside the parameters that they belong to, in the model's order."""
    return tuple(torch.tensor(values[name], device=p.device, dtype=p.dtype) for name, p in trained.items())


def change_since(trained: Mapping[str, nn.Parameter], start: Parameters) -> Parameters:
    """What training has made of parameters, less what they were: float32, on the CPU."""
    return {name: np.asarray(p.detach().to("cpu", torch.float32).numpy() - start[name]) for name, p in trained.items()}
