"""Copies of one record count as one: their mean gradient is clipped once, by both engines and in both kinds of sums."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd.copies import join_copies
from privacy.dpsgd.engine import DpEngine, private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.layers.linear import LARGE
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.example_sum_grid import SLACK
from privacy.noise import ReproducibleNoise

ENGINES: tuple[DpEngine, ...] = ("bookkeeping", "opacus")
CLIP, COPIES, RECORDS = 0.05, 3, 7


class Silence(ReproducibleNoise):
    """A source of zeros, so that the rest of a step can be seen."""

    __slots__ = ()

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def small() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 5))


def large_layer() -> nn.Module:
    """One whose gradients come as factors."""
    torch.manual_seed(2)
    wide = -(-LARGE // 64)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, wide), nn.Tanh(), nn.Linear(wide, 5))


def head_alone() -> nn.Module:
    """One whose sums have a closed form, of single examples."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


NETWORKS = {"small": small, "large-layer": large_layer, "head-alone": head_alone}


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(RECORDS * COPIES, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 5, (RECORDS,), generator=generator).repeat_interleave(COPIES)


def by_hand(model: nn.Module) -> np.ndarray:
    """Each record's mean gradient through autograd, in float64; clipped and added up one by one."""
    model = copy.deepcopy(model).double()
    total = np.zeros(sum(p.numel() for p in model.parameters()))
    x, y = batch()
    for i in range(0, len(y), COPIES):
        loss = nn.functional.cross_entropy(model(x[i : i + COPIES].double()), y[i : i + COPIES])  # a mean
        gradient = np.concatenate([g.flatten().numpy() for g in torch.autograd.grad(loss, list(model.parameters()))])
        total += gradient * min(1.0, CLIP / np.linalg.norm(gradient))
    return total


def summed(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels, reduction="sum")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_joint_steps_sum_is_that_of_each_records_clipped_mean(network: str, engine: DpEngine) -> None:
    model = NETWORKS[network]().train()
    found = clipped_gradient_sum(model, [batch()], clipping_norm=CLIP, engine=engine, copies=COPIES)
    np.testing.assert_allclose(found, by_hand(model), atol=2e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("at_once", [1, 2, RECORDS])
def test_a_step_is_made_of_each_records_clipped_mean(network: str, engine: DpEngine, at_once: int) -> None:
    """In whatever parts the batch comes, as long as a record's copies come together."""
    model = NETWORKS[network]().train()
    wanted = by_hand(model)
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        clipping_norm=CLIP,
        expected_batch_size=1,
        noise=Silence(b"test"),
        values_left_as_factors=values_left_as_factors(model, engine),
    )
    x, y = batch()
    size = at_once * COPIES
    with private_hooks(model, engine):
        parts = [(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size)]
        private_gradient_step(model, optimizer, summed, parts, copies=COPIES)
    after = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    np.testing.assert_allclose((before - after).numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_one_record_with_all_its_copies_moves_the_sum_by_the_clipping_norm_at_most(network: str) -> None:
    """Its copies all far out, and alike (rule 6: the unit is bounded before it is augmented)."""
    model = NETWORKS[network]().train()
    x, y = batch()
    far, label = 100 * torch.randn(1, 1, 8, 8).repeat(COPIES, 1, 1, 1), torch.full((COPIES,), 2)
    neighbours = [(x, y), (torch.cat([x, far]), torch.cat([y, label]))]
    one, other = (clipped_gradient_sum(model, [part], clipping_norm=CLIP, copies=COPIES) for part in neighbours)
    distance = float(np.linalg.norm(other - one))
    assert 0.9 * CLIP < distance <= CLIP * (1 + SLACK)


def test_one_copy_that_is_not_finite_takes_its_record_out_and_no_other() -> None:
    model = small().train()
    x, y = batch()
    broken = x.clone()
    broken[4] = torch.nan  # the second copy of the second record
    without = (torch.cat([x[:3], x[6:]]), torch.cat([y[:3], y[6:]]))
    one, other = (
        clipped_gradient_sum(model, [part], clipping_norm=CLIP, copies=COPIES) for part in ((broken, y), without)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_batch_that_holds_a_part_of_a_record_is_refused() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad_sample = torch.zeros(7, 2)  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="7 gradients are no whole number of records of 3 copies each"):
        join_copies([parameter], 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_on_a_part_of_a_record_is_refused(engine: DpEngine) -> None:
    model = small().train()
    x, y = batch()
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        clipping_norm=CLIP,
        expected_batch_size=1,
        noise=Silence(b"test"),
    )
    with private_hooks(model, engine), pytest.raises(RuntimeError):
        private_gradient_step(model, optimizer, summed, [(x[:-1], y[:-1])], copies=COPIES)
