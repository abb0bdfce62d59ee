"""Private local training: what a client does with its data in a round whose steps are clipped and noised.

The plain way's model and schedule; but batches are drawn by secret coins, and data is touched only through
`private_gradient_step` or `clipped_gradient_sum`. All their randomness comes from a `NoiseSource`.

It is a module of its own because it brings Opacus, which takes seconds to import: only who trains so asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from client.augment import augmented
from client.datasets.records import Records
from client.trainer import change_since, most_at_once, parts_of, seeded, tensors_of, trained_parameters
from privacy.dpsgd.adaptive_optimizer import AdaptiveOptimizer
from privacy.dpsgd.engine import private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.linear_head import linear_head
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.dpsgd.planted import PlantedGradients
from privacy.dpsgd.precision import outputs
from privacy.dpsgd.sampling import poisson_batch
from privacy.dpsgd.summed_step import SummedStep
from privacy.mechanisms import DpSgd
from privacy.noise import NoiseSource
from shared_models.loss import loss_of
from shared_models.parameters import Parameters, set_parameters
from shared_models.plan import Plan
from shared_models.plan_adaptive import adapts_within_rounds, clipping_of
from shared_models.plan_augment import copies_of
from shared_models.schedule import learning_rate

Batch = tuple[Tensor, Tensor]


def train_private(
    model: nn.Module,
    start: Parameters,
    records: Records,
    plan: Plan,
    *,
    round_number: int,
    noise: NoiseSource,
    correction: Parameters | None = None,
) -> Parameters:
    """Train by DP-SGD (Abadi et al. 2016): steps, sample rate and batch size are the plan's public constants.

    A client without records still releases its steps, which are then noise alone.

    Args:
        model: the plan's network on its device; its parameters are overwritten.
        start: the shared model.
        records: the client's own; may be none.
        plan: the resolved plan.
        round_number: from 1.
        noise: where sampling, noise and dropout come from; the client's own.
        correction: added to the gradient of each step once it is private; of released values alone.

    Returns:
        The change of the parameters: all that may leave.
    """
    device = next(model.parameters()).device
    set_parameters(model, start)
    model.train()
    release = plan.train_release()
    assert isinstance(release, DpSgd)  # a secure sum's clients train plainly, or make no step of their own
    optimizer = _optimizer(model, plan, round_number)
    if correction is not None:
        _add_correction(optimizer, model, correction)
    steps = _private_steps(model, records, plan, release, optimizer, noise)
    # Dropout masks are dealt to the examples of a batch in order. Were they predictable, an example more would change
    # its neighbours' masks and with them their gradients; from secret entropy each example's mask is its own. (On the
    # CPU torch keeps 32 bits of a seed, so masks are harder to guess than to see, but no match for the noise.)
    with steps as step, seeded(int(noise.uniform(1)[0] * 2**53), device):
        for _ in range(release.steps):
            step(*_private_batch(records, plan, noise, device))
    return change_since(trained_parameters(model), start)


@contextmanager
def _private_steps(
    model: nn.Module,
    records: Records,
    plan: Plan,
    release: DpSgd,
    optimizer: torch.optim.Optimizer,
    noise: NoiseSource,
) -> Iterator[Callable[[Iterable[Batch], PlantedGradients | None], None]]:
    """What makes a private step of a batch: in closed form where a linear head is all that is trained."""
    engine, left = plan.training.dp_engine, values_left_as_factors(model, plan.training.dp_engine)
    noised: dict[str, Any] = {
        "noise_multiplier": release.noise_multiplier,
        "expected_batch_size": plan.training.expected_batch_size,
        "noise": noise,
    }
    clipped: dict[str, Any] = {"clipping_norm": plan.privacy.clipping_norm, "mode": plan.privacy.clipping}
    loss, copies = loss_of(plan), copies_of(plan)
    example, label = _nobodys(records, next(model.parameters()).device)
    private: PrivateOptimizer
    if adapts_within_rounds(plan):
        private = AdaptiveOptimizer(optimizer, clipping=clipping_of(plan), **noised, values_left_as_factors=left)
    elif copies == 1 and linear_head(model, example) is not None:
        summed = SummedStep(model, optimizer, **noised, **clipped, loss=loss, precision=plan.training.precision)

        def summed_step(microbatches: Iterable[Batch], planted: PlantedGradients | None) -> None:
            parts = iter(microbatches)
            first = next(parts, None)
            if first is None:
                summed.rehearse(example, label)  # as below
            summed.step(() if first is None else chain([first], parts), planted)

        yield summed_step
        return
    else:
        private = PrivateOptimizer(optimizer, **noised, **clipped, values_left_as_factors=left)

    def step(microbatches: Iterable[Batch], planted: PlantedGradients | None) -> None:
        parts = iter(microbatches)
        first = next(parts, None)
        if first is None:
            torch.autograd.backward(loss(outputs(model, example, plan.training.precision), label))
            private.accumulate(examples=1)
            private.zero_grad(set_to_none=True)  # it is nobody's, and goes into nothing
        batch = () if first is None else chain([first], parts)
        private_gradient_step(
            model, private, loss, batch, precision=plan.training.precision, copies=copies, planted=planted
        )

    with private_hooks(model, engine):
        yield step


def _private_batch(
    records: Records, plan: Plan, noise: NoiseSource, device: torch.device
) -> tuple[Iterator[Batch], PlantedGradients | None]:
    """A Poisson batch in parts that fit the memory; at rate 1 all records, without a copy where they fit.

    Of each record there are as many as the plan makes of it, beside each other. What an auditor has planted is drawn
    by coins of the same kind.
    """
    n, rate, most, planted = len(records), plan.training.sample_rate, most_at_once(plan), records.planted
    if rate == 1:
        parts: Iterable[Tensor | slice] = [slice(i, i + (most or n)) for i in range(0, n, most or n)] if n else []
    else:
        batch = poisson_batch(n + (0 if planted is None else len(planted)), rate, noise)
        if planted is not None:
            batch, planted = batch[batch < n], planted.take(batch[batch >= n] - n)
        parts = parts_of(batch, plan) if len(batch) else []
    made = (augmented(records.x[p].to(device), records.y[p].to(device), plan.training.augment) for p in parts)
    return made, planted


def _nobodys(records: Records, device: torch.device, *, copies: int = 1) -> Batch:
    """What goes through the network, and into nothing, where nobody was drawn: without it the time of a step would
    say so."""
    x = torch.zeros(copies, *records.x.shape[1:], device=device)
    return x, torch.zeros(copies, *records.y.shape[1:], dtype=torch.int64, device=device)


def gradient_sum(
    model: nn.Module, start: Parameters, records: Records, plan: Plan, *, noise: NoiseSource
) -> npt.NDArray[np.float64]:
    """The sum of the clipped gradients of one batch, for a joint step (`privacy.dpsgd.gradient_sum`).

    Not to be released as it is: it has no noise.

    Args:
        model: the plan's network on its device; its parameters are overwritten.
        start: the shared model.
        records: the client's own; may be none.
        plan: the resolved plan.
        noise: where sampling and dropout come from; the client's own.

    Returns:
        Flat, in the layout's order.
    """
    device = next(model.parameters()).device
    set_parameters(model, start)
    model.train()
    with seeded(int(noise.uniform(1)[0] * 2**53), device):  # dropout: as in `train_private`
        batch, planted = _private_batch(records, plan, noise, device)
        summed = partial(
            clipped_gradient_sum,
            model,
            clipping_norm=plan.privacy.clipping_norm,
            mode=plan.privacy.clipping,
            loss=loss_of(plan),
            engine=plan.training.dp_engine,
            precision=plan.training.precision,
            copies=copies_of(plan),
        )
        parts = iter(batch)
        first = next(parts, None)
        if first is None:
            summed([_nobodys(records, device, copies=copies_of(plan))])
        return summed(() if first is None else chain([first], parts), planted=planted)


def _optimizer(model: nn.Module, plan: Plan, round_number: int) -> torch.optim.Optimizer:
    training = plan.training
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = learning_rate(plan, round_number)
    optimizer: torch.optim.Optimizer
    if training.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=training.weight_decay)
    else:
        kind = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
        optimizer = kind(parameters, lr=rate, betas=training.betas, weight_decay=training.weight_decay)
    if training.proximal_mu > 0:
        _add_proximal_term(optimizer, parameters, training.proximal_mu)
    return optimizer


def _add_proximal_term(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], mu: float) -> None:
    """Pull towards the round's start: mu (w - w0) joins the gradient (FedProx, arXiv 1812.06127, equation 2).

    It is added where the optimiser takes its step, so under privacy after clipping and noise: it depends on the
    released parameters alone.
    """
    anchors = [p.detach().clone() for p in parameters]

    def pull(*_: object) -> None:
        with torch.no_grad():
            for p, anchor in zip(parameters, anchors, strict=True):
                if p.grad is not None:
                    p.grad.add_(p - anchor, alpha=mu)

    optimizer.register_step_pre_hook(pull)


def _add_correction(optimizer: torch.optim.Optimizer, model: nn.Module, correction: Parameters) -> None:
    """SCAFFOLD's c - c_i joins the gradient where the optimiser takes its step: after clipping and noise."""
    trained = trained_parameters(model)
    pairs = tuple(zip(trained.values(), tensors_of(trained, correction), strict=True))

    def correct(*_: object) -> None:
        with torch.no_grad():
            for p, value in pairs:
                if p.grad is not None:
                    p.grad.add_(value)

    optimizer.register_step_pre_hook(correct)
