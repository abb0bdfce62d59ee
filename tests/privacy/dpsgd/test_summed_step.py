"""The private step in closed form: the same step as through per-example gradients, and its noise (rules 1, 2, 5, 9)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from privacy.dpsgd.engine import private_gradient_step, private_hooks
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.dpsgd.summed_step import SummedStep
from privacy.noise import ReproducibleNoise, SecretNoise

CLIP, BATCH = 0.7, 40.0


class Recorded(ReproducibleNoise):
    """No noise, but what was asked for."""

    __slots__ = ("scales",)

    def __init__(self) -> None:
        super().__init__(b"recorded")
        self.scales: list[float] = []

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        self.scales.append(scale)
        return torch.zeros(tuple(shape), dtype=torch.int64)


def data(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(0, 4, (n,), generator=generator)


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 4))


def weights(of: nn.Module) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in of.parameters()])


def test_it_is_the_step_of_per_example_gradients() -> None:
    closed, through_hooks, batch = model(), model(), data(33)
    facts = {"noise_multiplier": 1.0, "clipping_norm": CLIP, "expected_batch_size": BATCH}
    sgd = torch.optim.SGD(closed.parameters(), lr=0.5, momentum=0.9)
    step = SummedStep(closed, sgd, **facts, noise=Recorded())
    other = PrivateOptimizer(
        torch.optim.SGD(through_hooks.parameters(), lr=0.5, momentum=0.9), **facts, noise=Recorded()
    )
    with private_hooks(through_hooks):
        for _ in range(3):
            step.step([batch])
            private_gradient_step(through_hooks, other, nn.CrossEntropyLoss(reduction="sum"), [batch])
    assert np.abs(weights(closed) - weights(through_hooks)).max() < 2e-5
    assert np.abs(weights(closed) - weights(model())).max() > 1e-2


def test_the_noise_covers_what_rounding_the_sum_adds() -> None:
    noise, net = Recorded(), model()
    step = SummedStep(
        net,
        torch.optim.SGD(net.parameters(), lr=1.0),
        noise_multiplier=3.0,
        clipping_norm=CLIP,
        expected_batch_size=BATCH,
        noise=noise,
    )
    step.step([data(5)])
    steps = 2**20
    assert noise.scales == [3.0 * step.sensitivity]
    assert step.sensitivity >= steps + math.sqrt(28)
    assert step.sensitivity <= 1.001 * steps


@pytest.mark.parametrize("seed", range(20))
def test_one_example_moves_what_is_released_by_its_sensitivity_at_most(seed: int) -> None:
    def released(batch: tuple[Tensor, Tensor]) -> np.ndarray:
        net = model()
        before = weights(net)
        step = SummedStep(
            net,
            torch.optim.SGD([{"params": list(net.parameters())}], lr=BATCH),
            noise_multiplier=1.0,
            clipping_norm=CLIP,
            expected_batch_size=BATCH,
            noise=Recorded(),
        )
        step.step([batch])
        assert step.sensitivity * CLIP / 2**20 <= CLIP * 1.001
        return before - weights(net)

    x, y = data(9, seed)
    x[0] *= 10.0 ** (seed - 10)
    moved = np.linalg.norm(released((x, y)) - released((x[1:], y[1:])))
    assert moved <= CLIP * 1.001


def test_an_empty_batch_releases_noise_of_the_same_deviation() -> None:
    """20,000 coordinates' deviation within five standard errors: a false alarm in two million."""
    torch.manual_seed(0)
    net = nn.Linear(1999, 10)
    before = weights(net)
    step = SummedStep(
        net,
        torch.optim.SGD(net.parameters(), lr=1.0),
        noise_multiplier=2.0,
        clipping_norm=CLIP,
        expected_batch_size=BATCH,
        noise=SecretNoise(),
    )
    step.step([])
    released = (before - weights(net)) * BATCH / CLIP
    wide = 2.0 * step.sensitivity / 2**20
    assert abs(released.std() / wide - 1) < 5 / math.sqrt(2 * 20_000)
    assert stats.kstest(released / wide, "norm").pvalue > 1e-6


def test_a_spoilt_model_adds_nothing_but_noise() -> None:
    net = model()
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)
    noise = Recorded()
    step = SummedStep(
        net,
        torch.optim.SGD(net.parameters(), lr=1.0),
        noise_multiplier=2.0,
        clipping_norm=CLIP,
        expected_batch_size=BATCH,
        noise=noise,
    )
    bias = list(net.parameters())[1].detach().clone()
    step.step([data(5)])
    assert torch.equal(list(net.parameters())[1], bias)
    assert len(noise.scales) == 1


def test_too_many_parameters_for_the_noise_are_refused() -> None:
    net = nn.Linear(1000, 1000)
    with pytest.raises(ValueError, match="too coarse"):
        SummedStep(
            net,
            torch.optim.SGD(net.parameters(), lr=1.0),
            noise_multiplier=2.0**19,
            clipping_norm=1.0,
            expected_batch_size=1.0,
            noise=SecretNoise(),
        )
