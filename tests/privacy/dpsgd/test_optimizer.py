"""Rules 1 and 9 in the private step: public divisor, noise always, and all of it on a grid."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from privacy.dpsgd.clipping import clipped_sums
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.release_grid import ReleaseGrid

FALSE_ALARM = 1e-6


class Silence(ReproducibleNoise):
    """A source of zeros, so that the rest of a step can be seen."""

    __slots__ = ()

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]


def private(
    inner: Optimizer,
    *,
    noise_multiplier: float = 1.0,
    clipping_norm: float = 1.0,
    expected_batch_size: float = 1,
    noise: NoiseSource | None = None,
) -> PrivateOptimizer:
    return PrivateOptimizer(
        inner,
        noise_multiplier=noise_multiplier,
        clipping_norm=clipping_norm,
        expected_batch_size=expected_batch_size,
        noise=noise or Silence(b"zeros"),
    )


def test_each_gradient_is_clipped_over_all_parameters_together() -> None:
    weight, bias = parameters((2,), (1,))
    optimizer = private(SGD([weight, bias], lr=1.0), clipping_norm=3.5)
    weight.grad_sample = torch.tensor([[2.0, 3.0], [0.1, -0.2]])
    bias.grad_sample = torch.tensor([[6.0], [0.2]])  # norms 7 and 0.3
    optimizer.accumulate(examples=2)
    optimizer.step()
    assert torch.allclose(weight, -torch.tensor([1.1, 1.3]), rtol=1e-5)
    assert torch.allclose(bias, -torch.tensor([3.2]), rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_rule_1_the_divisor_is_public(batch: int) -> None:
    (parameter,) = parameters((3,), dtype=torch.float64)
    optimizer = private(SGD([parameter], lr=1.0), expected_batch_size=16)
    parameter.grad_sample = torch.full((batch, 3), 0.1, dtype=torch.float64)
    optimizer.accumulate()
    optimizer.step()
    assert torch.allclose(-parameter, torch.full((3,), batch * 0.1 / 16, dtype=torch.float64), atol=batch * 2.0**-24)


@pytest.mark.parametrize("draws", [0, 3])
def test_rule_1_noise_has_the_claimed_deviation_for_an_empty_batch_too(draws: int) -> None:
    d, sigma, clip, n = 20_000, 1.7, 0.3, 16
    weight, bias = parameters((d - 1,), (1,))
    optimizer = private(
        SGD([weight, bias], lr=1.0),
        noise_multiplier=sigma,
        clipping_norm=clip,
        expected_batch_size=n,
        noise=SecretNoise(),
    )
    for _ in range(draws):  # gradients of zero: what is left is the noise of one step, not of each microbatch
        weight.grad_sample, bias.grad_sample = torch.zeros(2, d - 1), torch.zeros(2, 1)
        optimizer.accumulate()
    optimizer.step()
    noise = torch.cat([weight, bias]).detach().double() / (sigma * clip / n)
    tail = stats.chi2(d).cdf(float(noise.square().sum()))
    assert FALSE_ALARM / 2 < tail < 1 - FALSE_ALARM / 2
    assert abs(float(noise.sum())) / math.sqrt(d) < stats.norm.isf(FALSE_ALARM / 2)


def test_noise_differs_at_every_step_and_between_optimizers() -> None:
    d = 10_000
    updates = []
    for _ in range(2):
        torch.manual_seed(7)  # a shared seed must not matter
        (parameter,) = parameters((d,))
        optimizer = private(SGD([parameter], lr=1.0), noise=SecretNoise())
        for _ in range(2):
            before = parameter.detach().clone()
            optimizer.step()
            updates.append(parameter.detach() - before)
    correlations = torch.corrcoef(torch.stack(updates))[*torch.triu_indices(4, 4, 1)]
    assert correlations.abs().max() < stats.norm.isf(FALSE_ALARM / 2 / 6) / math.sqrt(d)


def released(seed: bytes, gradients: Tensor | None, *, clip: float = 1.0, sigma: float = 1.5) -> Tensor:
    """What one step gives away, in float64 and undivided."""
    (parameter,) = parameters((1000,), dtype=torch.float64)
    noise = ReproducibleNoise(seed)
    optimizer = private(SGD([parameter], lr=1.0), clipping_norm=clip, noise_multiplier=sigma, noise=noise)
    if gradients is not None:
        parameter.grad_sample = gradients
        optimizer.accumulate()
    optimizer.step()
    return -parameter.detach()


@pytest.mark.parametrize("clip", [1.0, 0.3, 1e-9, 1e9])
@pytest.mark.parametrize("examples", [None, 0, 1, 50])
def test_rule_9_every_coordinate_that_leaves_is_a_whole_number_of_steps(clip: float, examples: int | None) -> None:
    gradients = None if examples is None else torch.randn(examples, 1000, dtype=torch.float64) * clip
    values, step = released(b"x", gradients, clip=clip), clip * 2.0**-20
    steps = (values / step).round()
    assert torch.equal(steps * step, values)
    assert len((steps % 2**10).unique()) > 500  # all residues occur: the grid is no finer, and no coarser


def test_rule_9_the_release_is_the_rounded_sum_and_the_noise_of_the_source() -> None:
    gradients = torch.randn(50, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grid = ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=1.5, dimensions=1000)
    noise = ReproducibleNoise(b"x").grid_normal((1000,), 1.5 * 2.0**20)
    (summed,) = clipped_sums([gradients], grid)
    assert torch.equal(released(b"x", gradients) * 2.0**20, (summed + noise).double())
    assert torch.equal(released(b"x", None) * 2.0**20, noise.double())


def test_parts_of_a_batch_and_their_order_change_nothing_at_all() -> None:
    gradients = torch.randn(23, 1000, generator=torch.Generator().manual_seed(1))
    sums = []
    for parts in ([gradients], gradients.split(4), gradients.flip(0).split(1)):
        (parameter,) = parameters((1000,))
        optimizer = private(SGD([parameter], lr=1.0), noise=ReproducibleNoise(b"x"))
        for part in parts:
            parameter.grad_sample = part.clone()
            optimizer.accumulate(examples=len(part))
        optimizer.step()
        sums.append(parameter.detach())
    assert torch.equal(sums[0], sums[1])
    assert torch.equal(sums[0], sums[2])


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(ValueError, match="too coarse"):
        private(SGD(parameters((200_000,)), lr=1.0), noise_multiplier=2.0**20)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
        lambda p: SGD(p, lr=0.3, momentum=0.9, nesterov=True),
        lambda p: Adam(p, lr=0.1, weight_decay=0.1),
        lambda p: AdamW(p, lr=0.1, weight_decay=0.1),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)
def test_the_wrapped_optimizer_sees_the_private_gradient_and_nothing_else(
    make: Callable[[Iterator[nn.Parameter]], Optimizer],
) -> None:
    start = torch.linspace(-1, 1, 6, dtype=torch.float64)
    ours, plain = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizer = private(make([ours]), expected_batch_size=4)  # type: ignore[arg-type]
    reference = make([plain])  # type: ignore[arg-type]
    for step in range(5):
        gradients = torch.randn(0 if step == 2 else 3, 6, dtype=torch.float64)  # one batch is empty
        if len(gradients):
            ours.grad_sample = gradients.clone()
            ours.grad = torch.full_like(ours, 1e6)  # what autograd leaves must not get through
            optimizer.accumulate()
        optimizer.step()
        (summed,) = clipped_sums([gradients], ReleaseGrid.of(clipping_norm=1.0, noise_multiplier=1.0, dimensions=6))
        plain.grad = summed.double() * 2.0**-20 / 4
        reference.step()
        assert torch.allclose(ours, plain, rtol=1e-10)


def test_a_scheduler_sets_the_rate_of_the_wrapped_optimizer() -> None:
    (parameter,) = parameters((1,))
    inner = SGD([parameter], lr=1.0)
    optimizer = private(inner)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.5


def test_a_step_leaves_no_gradient_behind() -> None:
    (parameter,) = parameters((2,))
    optimizer = private(SGD([parameter], lr=1.0))
    parameter.grad_sample = torch.ones(3, 2)
    parameter.grad = torch.ones(2)
    optimizer.accumulate()
    assert parameter.grad_sample is None
    assert parameter.grad is None
    optimizer.step()
    assert parameter.grad is None
    assert parameter.summed_grad is None


def test_step_refuses_gradients_that_were_not_accumulated() -> None:
    (parameter,) = parameters((2,))
    optimizer = private(SGD([parameter], lr=1.0))
    parameter.grad_sample = torch.ones(3, 2)
    with pytest.raises(RuntimeError, match=r"call accumulate\(\) first"):
        optimizer.step()
    assert torch.equal(parameter, torch.zeros(2))


def test_gradients_are_accumulated_once() -> None:
    (parameter,) = parameters((2,))
    optimizer = private(SGD([parameter], lr=1.0))
    parameter.grad_sample = torch.ones(3, 2)
    optimizer.accumulate()
    with pytest.raises(RuntimeError, match="no per-example gradients"):
        optimizer.accumulate()


def test_two_backward_passes_are_not_one_batch() -> None:
    (parameter,) = parameters((2,))
    optimizer = private(SGD([parameter], lr=1.0))
    parameter.grad_sample = [torch.ones(3, 2), torch.ones(3, 2)]  # as Opacus stacks them
    with pytest.raises(RuntimeError, match="two backward passes"):
        optimizer.accumulate()


def test_the_numbers_of_examples_must_agree() -> None:
    weight, bias = parameters((2,), (1,))
    optimizer = private(SGD([weight, bias], lr=1.0))
    weight.grad_sample, bias.grad_sample = torch.ones(6, 2), torch.ones(3, 1)
    with pytest.raises(RuntimeError, match=r"\[3, 6\]"):
        optimizer.accumulate()
    bias.grad_sample = torch.ones(6, 1)
    with pytest.raises(RuntimeError, match="examples 3"):
        optimizer.accumulate(examples=3)
    optimizer.accumulate(examples=6)


def test_a_sum_is_never_noised_twice() -> None:
    class Failing(SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise OSError

    (parameter,) = parameters((2,))
    optimizer = private(Failing([parameter], lr=1.0))
    parameter.grad_sample = torch.ones(3, 2)
    optimizer.accumulate()
    with pytest.raises(OSError):  # noqa: PT011 - the bare error is the point
        optimizer.step()
    assert parameter.summed_grad is None
    assert parameter.grad is None


def test_a_closure_is_refused() -> None:
    (parameter,) = parameters((2,))
    with pytest.raises(TypeError, match="no closure"):
        private(SGD([parameter], lr=1.0)).step(lambda: 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("noise_multiplier", bad) for bad in (0.0, -1.0, math.nan, math.inf)],
        *[("clipping_norm", bad) for bad in (0.0, -1.0, 1e-12, 1e12, math.nan)],
        *[("expected_batch_size", bad) for bad in (0, -16, math.nan, math.inf)],
    ],
)
def test_a_number_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        private(SGD(parameters((2,)), lr=1.0), **{name: value})


def test_parameters_of_another_precision_are_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        private(SGD(parameters((2,), (3,), dtype=torch.bfloat16), lr=1.0))
    with pytest.raises(ValueError, match="all float32 or all float64"):
        private(SGD([*parameters((2,)), *parameters((2,), dtype=torch.float64)], lr=1.0))
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    with pytest.raises(ValueError, match="none"):
        private(SGD([frozen], lr=1.0))


def test_the_clipping_norm_can_be_read() -> None:
    assert private(SGD(parameters((2,)), lr=1.0), clipping_norm=0.5).clipping_norm == 0.5
