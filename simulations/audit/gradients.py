"""Gradients of records, one row each, as a private step makes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from client.datasets.records import Records
from privacy.dpsgd.engine import private_hooks
from privacy.dpsgd.optimizer import as_rows, free_per_example, per_example_gradients
from shared_models.loss import loss_of
from shared_models.plan import Plan

_AT_ONCE: Final = 64  # examples whose gradients are in memory together; of a large network fewer
_VALUES: Final = 2**26


def gradients_of(plan: Plan, model: nn.Module, records: Records) -> Iterator[tuple[slice, Tensor]]:
    """Which records, and their gradients of the trained values, (records, values); a part of them at a time.

    Args:
        plan: whose loss and engine are used.
        model: in training mode.
        records: at least one.
    """
    trained, loss = [p for p in model.parameters() if p.requires_grad], loss_of(plan)
    some = max(1, min(_AT_ONCE, _VALUES // sum(p.numel() for p in trained)))
    for start in range(0, len(records), some):
        part = slice(start, min(start + some, len(records)))
        with private_hooks(model, plan.training.dp_engine):
            torch.autograd.backward(loss(model(records.x[part]), records.y[part]))
            gradients = torch.cat([as_rows(g).flatten(1) for g in per_example_gradients(trained)], dim=1)
            free_per_example(trained)
        yield part, gradients
