"""Plain training of several virtual clients at once, for small models of linear layers.

Calling torch for a handful of numbers costs more than computing with them. So, where a plan wants it
(`training.company`), clients of a simulation that are asked one after the other, their *company*, take their steps
together: as one batched product where each had its own. Who keeps whom company follows from the plan and the order in
which a cohort is asked, never from processes: on every grid of this machine a client's update is the same to the last
bit. To that of a client that trains alone it is equal up to rounding.

A company's first client trains all of it, before the guard has admitted the others; what a client has trained leaves
only in a reply of its own, which its guard admits and releases. So this is for simulations without privacy alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from client.datasets.records import Records
from client.local_optimizer import LocalOptimizer
from client.trainer import batches_of, train_plain
from shared_models.features.apply import model_shape
from shared_models.linear import Linear
from shared_models.loss import loss_of
from shared_models.mlp import Mlp
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.plan_asynchronous import is_asynchronous
from shared_models.plan_personal import has_own_head
from shared_models.plan_scaffold import is_scaffold
from shared_models.schedule import learning_rate

_MOST_PARAMETERS: Final = 20_000
_MOST_VALUES: Final = 1 << 15  # of a batch's examples: beyond it arithmetic is what a step costs

Trained = tuple[Parameters, float]
"""A client's change of the parameters, and its mean loss, as of `train_plain`."""


def company_size(plan: Plan, model: nn.Module) -> int:
    """How many clients of a plan train together: as many as it wants. A matter of the plan, for its model follows from
    it.

    One where it would not be quicker, or where something else would be computed: with privacy, chance in the layers,
    in parts of a batch, or in another precision.
    """
    training = plan.training
    fits = (
        training.company > 1
        and not plan.is_private
        and not is_scaffold(plan)
        and not is_asynchronous(plan)
        and not has_own_head(plan)
        and training.precision == "float32"
        and training.max_physical_batch is None
        and training.expected_batch_size * math.prod(model_shape(plan)) <= _MOST_VALUES
        and loss_of(plan).is_plain
        and training.augment is None
        and _is_simple(model)
        and sum(p.numel() for p in model.parameters()) <= _MOST_PARAMETERS
    )
    return training.company if fits else 1


def _is_simple(model: nn.Module) -> bool:
    if type(model) is Mlp:
        return all(type(layer) in (nn.Flatten, nn.Linear, nn.ReLU, nn.Tanh) for layer in model.layers)
    return type(model) is Linear


def train_company(
    model: nn.Module, start: Parameters, company: Mapping[str, Records], plan: Plan, *, round_number: int
) -> dict[str, Trained]:
    """Train clients of a plan that `company_size` has let train together.

    Args:
        model: the plan's network; its parameters are overwritten.
        start: the shared model.
        company: each client's records, by its id; their order counts. Who has none is left out.
        plan: the resolved plan.
        round_number: from 1.

    Returns:
        What `train_plain` would, up to rounding. Clients whose batches have other lengths train apart.
    """
    alike: dict[tuple[int, ...], list[str]] = defaultdict(list)
    batches: dict[str, list[Tensor]] = {}
    for client, records in company.items():
        if len(records) > 0:
            batches[client] = list(batches_of(len(records), plan, round_number=round_number, client=client))
            alike[tuple(len(batch) for batch in batches[client])].append(client)
    found: dict[str, Trained] = {}
    for clients in alike.values():
        if len(clients) == 1:
            (one,) = clients
            found[one] = train_plain(model, start, company[one], plan, round_number=round_number, client=one)
        else:
            members = [(company[client], batches[client]) for client in clients]
            found |= zip(clients, _train_alike(model, start, members, plan, round_number), strict=True)
    return found


def _train_alike(
    model: nn.Module,
    start: Parameters,
    members: Sequence[tuple[Records, Sequence[Tensor]]],
    plan: Plan,
    round_number: int,
) -> list[Trained]:
    """Clients with batches of equal lengths, step by step: each parameter with a first dimension of clients."""
    trained = {
        name: torch.tensor(start[name]).expand(len(members), *p.shape).clone().requires_grad_()
        for name, p in model.named_parameters()
    }
    # The optimiser's arithmetic is value by value: it sees no clients.
    optimizer = LocalOptimizer(tuple(trained.values()), plan.training, learning_rate(plan, round_number))
    totals, seen = torch.zeros(len(members), dtype=torch.float64), 0
    for batch in zip(*(batches for _, batches in members), strict=True):
        x, y = (
            torch.stack([getattr(records, name)[rows] for (records, _), rows in zip(members, batch, strict=True)])
            for name in ("x", "y")
        )
        optimizer.zero_grad()
        logits = _logits(model, trained, x.flatten(2))
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).sum(1)
        # Nobody's loss hangs on another one's parameters: the gradient of the sum is each one's own.
        (losses / y.shape[1]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals += losses.detach()
        seen += y.shape[1]
    changes = {name: p.detach().numpy() - start[name] for name, p in trained.items()}
    return [
        ({name: change[number].copy() for name, change in changes.items()}, float(totals[number]) / seen)
        for number in range(len(members))
    ]


def _logits(model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Logits (clients, batch, classes) of rows (clients, batch, values), by each client's parameters."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
            x = torch.bmm(x, weight.mT) + bias[:, None]
        elif isinstance(layer, nn.ReLU | nn.Tanh):
            x = layer(x)
    return x


@dataclass(frozen=True)
class _Last:
    """What a company trained last in this process."""

    plan: Plan
    round_number: int
    clients: tuple[str, ...]
    start: tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], ...]
    trained: dict[str, Trained]


@dataclass
class _Process:
    """What this process is at."""

    company: tuple[str, ...] = ()
    last: _Last | None = None


_here = _Process()


@contextmanager
def in_company(clients: tuple[str, ...]) -> Iterator[None]:
    """Inside, this process works for one of these clients, whose plan lets them train together. In a simulation."""
    before, _here.company = _here.company, clients
    try:
        yield
    finally:
        _here.company = before


def train_in_company(
    model: nn.Module,
    start: Parameters,
    records_of: Callable[[str], Records],
    plan: Plan,
    *,
    round_number: int,
    client: str,
    correction: Parameters | None = None,
) -> Trained:
    """As `train_plain`, for a client by itself or in the company that this process works for.

    Args:
        records_of: gives each client's records.
        model, start, plan, round_number, client, correction: as of `train_plain`.

    Raises:
        ValueError: the client has no records.
    """
    company = _here.company
    if client not in company or len(company) == 1 or next(model.parameters()).device.type != "cpu":
        own = records_of(client)
        return train_plain(model, start, own, plan, round_number=round_number, client=client, correction=correction)
    values = tuple(start.values())
    last = _here.last
    if (
        last is None
        or (last.plan, last.round_number, last.clients) != (plan, round_number, company)
        or any(one is not other for one, other in zip(last.start, values, strict=True))
        or client not in last.trained
    ):
        members = {one: records_of(one) for one in company}
        trained = train_company(model, start, members, plan, round_number=round_number)
        last = _here.last = _Last(plan, round_number, company, values, trained)
    if client not in last.trained:
        raise ValueError("a client without records can't train")
    return last.trained.pop(client)
