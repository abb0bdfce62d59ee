"""Rule 1 and rule 5 in the private step: public divisor, bounded influence, noise always."""

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise

FALSE_ALARM = 1e-6


class Silence(ReproducibleNoise):
    """A source of zeros, so that the rest of a step can be seen."""

    __slots__ = ()

    def standard_normal(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        return torch.zeros(tuple(shape), dtype=dtype, device=device)


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


def clipped_sum(gradients: Tensor, clipping_norm: float = 1.0) -> Tensor:
    """The update of one step without noise, with the public divisor 1, of gradients (examples, parameters)."""
    (parameter,) = parameters((gradients.shape[1],), dtype=gradients.dtype)
    optimizer = private(SGD([parameter], lr=1.0), clipping_norm=clipping_norm)
    parameter.grad_sample = gradients.clone()
    optimizer.accumulate()
    optimizer.step()
    return -parameter.detach()


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
    assert torch.allclose(-parameter, torch.full((3,), batch * 0.1 / 16, dtype=torch.float64))


def test_microbatches_make_one_step() -> None:
    gradients = torch.randn(10, 4, dtype=torch.float64)
    (parameter,) = parameters((4,), dtype=torch.float64)
    optimizer = private(SGD([parameter], lr=1.0))
    for part in gradients.split(3):
        parameter.grad_sample = part.clone()
        optimizer.accumulate(examples=len(part))
    optimizer.step()
    assert torch.allclose(-parameter, clipped_sum(gradients), rtol=1e-12)


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


def test_an_empty_backward_pass_counts_nothing() -> None:
    assert torch.equal(clipped_sum(torch.zeros(0, 5)), torch.zeros(5))


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


# Every kind of float32: huge, tiny, denormal, zero, infinite, not a number.
floats = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from(
    [0.0, 1e-45, -1e-40, 1e-19, 1e19, 2e19, 3.4e38, math.inf, -math.inf, math.nan]
)
batches = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6).flatmap(
    lambda shape: arrays.arrays("float32", shape, elements=floats)
)
norms = st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0, 1e9])


@settings(max_examples=300, deadline=None)
@given(batch=batches, clip=norms, which=st.integers(0, 5))
@example(batch=torch.full((2, 6), 1e19).numpy(), clip=1e-9, which=0)
@example(batch=torch.full((2, 6), 3.4e38).numpy(), clip=1.0, which=1)
def test_rule_5_one_example_moves_the_sum_by_at_most_the_clipping_norm(batch: object, clip: float, which: int) -> None:
    gradients = torch.as_tensor(batch)
    which %= len(gradients)
    alone = clipped_sum(gradients[which : which + 1], clip).double()
    assert alone.norm() <= clip  # strictly, rounding included

    everyone = clipped_sum(gradients, clip).double()
    others = clipped_sum(torch.cat([gradients[:which], gradients[which + 1 :]]), clip).double()
    rounding = 2 * len(gradients) ** 2 * 2.0**-24 * clip  # of the two sums, each of at most n terms of norm C
    assert (everyone - others).norm() <= clip + rounding


@settings(max_examples=100, deadline=None)
@given(batch=batches, bad=st.sampled_from([math.nan, math.inf, -math.inf]), where=st.integers(0, 35))
def test_rule_5_a_gradient_that_is_not_finite_adds_exactly_zero(batch: object, bad: float, where: int) -> None:
    gradients = torch.as_tensor(batch)
    row = torch.zeros(1, gradients.shape[1])
    row[0, where % gradients.shape[1]] = bad
    assert torch.equal(clipped_sum(torch.cat([row, gradients])), clipped_sum(gradients))
    assert torch.equal(clipped_sum(row), torch.zeros(gradients.shape[1]))


@pytest.mark.parametrize("value", [2e19, 1e30, 3.4e38])
def test_rule_5_a_norm_whose_square_is_out_of_range_counts_as_not_finite(value: float) -> None:
    # A factor of C / 1e38 would have too few bits left to bound the product.
    assert torch.equal(clipped_sum(torch.tensor([[value]])), torch.zeros(1))


def test_rule_5_one_bad_parameter_silences_the_whole_example() -> None:
    weight, bias = parameters((2,), (1,))
    optimizer = private(SGD([weight, bias], lr=1.0))
    weight.grad_sample = torch.tensor([[0.1, 0.1], [0.2, 0.2]])
    bias.grad_sample = torch.tensor([[math.nan], [0.2]])
    optimizer.accumulate()
    optimizer.step()
    assert torch.allclose(weight, torch.tensor([-0.2, -0.2]))
    assert torch.allclose(bias, torch.tensor([-0.2]))


def test_gradients_below_the_clipping_norm_are_left_as_they_are() -> None:
    gradients = torch.tensor([[0.5, -0.25], [1e-30, 1e-45]])
    assert torch.equal(clipped_sum(gradients[:1]), gradients[0])
    assert torch.equal(clipped_sum(gradients[1:]), gradients[1])


def test_the_norm_of_a_large_layer_does_not_drift() -> None:
    # A plain float32 sum of squares is off by 0.2 % here.
    clipped = float(clipped_sum(torch.full((1, 10_000_000), 1.1)).double().norm())
    assert 1 - 1e-5 <= clipped <= 1


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
        factors = gradients.norm(dim=1).clamp(min=1).reciprocal()
        plain.grad = (factors @ gradients) / 4
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
