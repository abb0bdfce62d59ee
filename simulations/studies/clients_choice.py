"""How the settings of `simulations.studies.clients` were chosen: on images held out of the training set.

    python -m simulations.studies.clients_choice

The same rounds in one process, without messages or books: a linear model, clients of 60 images each, a cohort of 50 on
average, clipped sums with noise. They learn from 50,000 training images and are judged on the other 10,000; seeds are
others than the study's, and the test set isn't read. Noise here is of torch's generator: good for choosing, not for
privacy.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from client.datasets.fashion_mnist import load
from privacy.adaptive_clipping import AdaptiveClipping
from privacy.factorisation import Participation, Workload, sensitivity, square_root
from shared_models.cards import card_for
from shared_models.plan_data import DataPlan

_COHORT, _IMAGES, _SEPARATION, _COUNT_NOISE = 50, 60, 20, 2.5
_SEED = 12345  # of which images are held out


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is tried.

    Attributes:
        learning_rate, steps: of a client's full-batch descent.
        norm: clipping norm; the first one, where it adapts.
        noise_multiplier: z, of a round; with a band, of the run.
        adapts: whether the norm follows the median.
        band: of known cohorts with correlated noise; None for Poisson cohorts with fresh noise.
        rounds: of the run.
    """

    learning_rate: float
    norm: float
    noise_multiplier: float
    steps: int = 5
    adapts: bool = False
    band: int | None = None
    rounds: int = 100


def judged(images: Tensor, labels: Tensor, held: tuple[Tensor, Tensor], choice: Choice, *, seed: int) -> float:
    """Accuracy on held-out images, after a run on the others.

    Args:
        images: flat, one row each.
        labels: of them.
        held: images and labels that are judged on.
        choice: what is tried.
        seed: of clients, cohorts and noise.
    """
    draws, coins = np.random.default_rng([77, seed]), torch.Generator().manual_seed(1000 + seed)
    clients = torch.from_numpy(draws.permutation(len(images))[: len(images) // _IMAGES * _IMAGES].reshape(-1, _IMAGES))
    size, classes = images.shape[1], int(labels.max()) + 1
    model, order = torch.zeros(size, classes), draws.permutation(len(clients))
    clipping = AdaptiveClipping(count_noise=_COUNT_NOISE, initial_norm=choice.norm, least_norm=1e-9, most_norm=1e9)
    state = clipping.start()
    noise, deviation = _noise(choice, model.numel(), coins), choice.noise_multiplier
    if choice.adapts and deviation:
        deviation = clipping.update_noise(deviation)
    for number in range(choice.rounds):
        cohort = np.flatnonzero(draws.random(len(clients)) < _COHORT / len(clients))
        if choice.band is not None:
            cohort = order[(np.arange(_COHORT) + _COHORT * number) % len(clients)]
        change = _trained(model, images[clients[cohort]], labels[clients[cohort]], choice) - model
        length = change.flatten(1).norm(dim=1)
        total = (change * torch.clamp(state.norm / length, max=1)[:, None, None]).sum(0)
        fresh = deviation * torch.randn(model.shape, generator=coins) if noise is None else noise[number].view_as(model)
        model = model + (total + state.norm * fresh) / _COHORT
        if choice.adapts:
            short = float((length <= state.norm).float().sum()) - len(length) / 2
            count = short + _COUNT_NOISE * float(torch.randn((), generator=coins))
            state = clipping.next_norm(state, 0.5 + count / _COHORT)
    return float((torch.argmax(held[0] @ model, 1) == held[1]).float().mean())


def _trained(model: Tensor, images: Tensor, labels: Tensor, choice: Choice) -> Tensor:
    """Each client's model after its own descent."""
    own, wanted = model.expand(len(images), -1, -1).clone(), torch.nn.functional.one_hot(labels, model.shape[1]).float()
    for _ in range(choice.steps):
        error = torch.softmax(torch.bmm(images, own), -1) - wanted
        own -= choice.learning_rate / images.shape[1] * torch.bmm(images.transpose(1, 2), error)
    return own


def _noise(choice: Choice, values: int, coins: torch.Generator) -> Tensor | None:
    """A whole run's correlated noise, for a norm of 1; None for fresh noise."""
    if choice.band is None:
        return None
    matrix = square_root(Workload(rounds=choice.rounds), choice.band)
    moved = sensitivity(matrix, Participation(rounds=choice.rounds, separation=_SEPARATION, most=choice.rounds))
    white = torch.randn(choice.rounds, values, generator=coins) * (choice.noise_multiplier * moved)
    return torch.from_numpy(np.linalg.inv(matrix.dense())).float() @ white


def held_out() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Images and labels to learn from, and those to judge on; a 1 for the bias is in each row."""
    data = DataPlan(name="fashion-mnist")
    training, _ = load(data, card_for(data))
    flat = training.x.flatten(1)
    flat = torch.cat([flat, torch.ones(len(flat), 1)], 1)
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(_SEED))
    learnt, kept = order[:50_000], order[50_000:]
    return flat[learnt], training.y[learnt], (flat[kept], training.y[kept])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.clients_choice", description=__doc__)
    parser.add_argument("--rates", type=float, nargs="*", default=[0.03, 0.05, 0.1])
    parser.add_argument("--norms", type=float, nargs="*", default=[0.1, 0.2, 0.3, 1.0])
    parser.add_argument("--noise", type=float, default=0.979, help="of a round: epsilon 3 at delta 1e-4")
    given = parser.parse_args(arguments)
    images, labels, held = held_out()
    for rate, norm in itertools.product(given.rates, given.norms):
        fixed, moving = (
            judged(
                images,
                labels,
                held,
                Choice(learning_rate=rate, norm=norm, noise_multiplier=given.noise, adapts=adapts),
                seed=101,
            )
            for adapts in (False, True)
        )
        print(
            f"rate {rate:g}, norm {norm:g}: {100 * fixed:.2f} %; adaptive from there {100 * moving:.2f} %", flush=True
        )


if __name__ == "__main__":
    torch.set_num_threads(max(1, math.ceil(torch.get_num_threads() / 2)))
    main()
