"""Gradient inversion: records of the attacker's invention are changed until their training moves the model as was seen.

Two published ways. `zhu`: the squared distance of the movements, by L-BFGS (Zhu, Liu & Han 2019, "Deep Leakage from
Gradients", arXiv 1906.08935). `geiping`: the cosine between them and the picture's total variation, by Adam on the
signs of gradients, inside the box that images are in (Geiping et al. 2020, "Inverting Gradients", arXiv 2003.14053).
Both papers speak of a gradient; here it is the movement of the model by a client's whole training (`replay`), which is
the same thing, times the learning rate, where that is one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from simulations.attacks.reconstruction.replay import Replay, Values

Way = Literal["zhu", "geiping"]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """How an inversion is made.

    Attributes:
        way: which.
        iterations: steps of the optimiser.
        restarts: beginnings; what explains the movement best is kept.
        seed: of the beginnings.
        total_variation: with `geiping`, its weight.
    """

    way: Way
    iterations: int
    restarts: int = 1
    seed: int = 0
    total_variation: float = 1e-3

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.restarts < 1:
            raise ValueError("an attack has at least one iteration and one beginning")


@dataclass(frozen=True, kw_only=True)
class Inverted:
    """What an inversion came to.

    Attributes:
        x: records, inside the box.
        objective: what was minimised, at the end; of restarts the least.
    """

    x: Tensor
    objective: float


def invert(
    replay: Replay,
    movement: Values,
    labels: Tensor,
    *,
    shape: tuple[int, ...],
    box: tuple[float, float],
    attack: Attack,
) -> Inverted:
    """Reconstruct the records that a movement was computed from.

    Args:
        replay: of the round.
        movement: that was seen.
        labels: (n,), classes of the records, known or inferred.
        shape: of one record; images (channels, height, width).
        box: least and largest value of a record, public.
        attack: how.
    """
    way = _zhu if attack.way == "zhu" else _geiping
    low, high = box
    best: Inverted | None = None
    for restart in range(attack.restarts):
        generator = torch.Generator().manual_seed(attack.seed * 1000 + restart)
        noise = torch.randn((len(labels), *shape), generator=generator, dtype=torch.float64)
        start = (low + high) / 2 + (high - low) / 4 * noise
        x, objective = way(replay, flat(movement), labels, start, box, attack)
        if best is None or objective < best.objective:
            best = Inverted(x=x.clamp(low, high), objective=objective)
    assert best is not None
    return best


def flat(values: Values) -> Tensor:
    """All values in one row."""
    return torch.cat([value.flatten() for value in values.values()])


def _zhu(
    replay: Replay, seen: Tensor, labels: Tensor, start: Tensor, box: tuple[float, float], attack: Attack
) -> tuple[Tensor, float]:
    del box  # the paper's has none
    x, told, size = start.requires_grad_(), replay.told(seen), seen.square().sum().clamp(min=1e-300)
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=attack.iterations,
        history_size=50,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-14,
        tolerance_change=1e-16,
    )

    def distance() -> Tensor:
        return (flat(replay.movement(x, labels)) - seen)[told].square().sum() / size

    optimizer.step(_closure(x, distance))  # type: ignore[no-untyped-call]
    found = x.detach()
    # A line search that left the finite numbers behind has found nothing.
    return (found, float(distance().detach())) if found.isfinite().all() else (torch.zeros_like(found), float("inf"))


def _closure(x: Tensor, objective: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        value = objective()
        (x.grad,) = torch.autograd.grad(value, [x])
        return value.detach()

    return closure


def _geiping(
    replay: Replay, seen: Tensor, labels: Tensor, start: Tensor, box: tuple[float, float], attack: Attack
) -> tuple[Tensor, float]:
    low, high = box
    x = start.clamp(low, high).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=(high - low) / 20)
    falls = [int(attack.iterations * part) for part in (3 / 8, 5 / 8, 7 / 8)]  # the paper's
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, falls, gamma=0.1)
    told, length = replay.told(seen), seen.norm().clamp(min=1e-300)

    def objective() -> Tensor:
        moved = flat(replay.movement(x, labels)) * told
        cosine = (moved @ seen) / (moved.norm().clamp(min=1e-300) * length)
        value: Tensor = 1 - cosine + attack.total_variation * total_variation(x)
        return value

    for _ in range(attack.iterations):
        (slope,) = torch.autograd.grad(objective(), [x])
        x.grad = slope.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.clamp_(low, high)
    return x.detach(), float(objective().detach())


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, of both directions added (Rudin, Osher & Fatemi 1992)."""
    across, down = x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]
    found: Tensor = across.abs().mean() + down.abs().mean()
    return found
