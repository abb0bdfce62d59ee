"""A clipping norm that follows the gradients: its bits are inside the one vector that the noise is made for."""

import math
from collections.abc import Sequence

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim import SGD

from privacy.adaptive_clipping import AdaptiveClipping
from privacy.dpsgd.adaptive_optimizer import AdaptiveOptimizer
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise

FALSE_ALARM = 1e-6
D = 12


class Recorder(ReproducibleNoise):
    """Draws no noise, and keeps the scale that was asked for."""

    __slots__ = ("asked",)

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        self.asked = (tuple(shape), scale)
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def made(
    *, norm: float = 1.0, sigma: float = 1.0, batch: float = 10, noise: NoiseSource | None = None, **more: float
) -> tuple[nn.Parameter, AdaptiveOptimizer]:
    parameter = nn.Parameter(torch.zeros(D, dtype=torch.float64))
    clipping = AdaptiveClipping(count_noise=2.0, initial_norm=norm, least_norm=norm / 1e6, most_norm=norm * 1e6, **more)
    optimizer = AdaptiveOptimizer(
        SGD([parameter], lr=1.0),
        clipping=clipping,
        noise_multiplier=sigma,
        expected_batch_size=batch,
        noise=noise or Recorder(b"none"),
    )
    return parameter, optimizer


def gradients(*lengths: float) -> Tensor:
    rows = torch.randn(len(lengths), D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rows / rows.norm(dim=1, keepdim=True) * torch.tensor(lengths, dtype=torch.float64)[:, None]


def test_a_step_is_the_mean_of_the_clipped_gradients_whatever_the_split() -> None:
    parameter, optimizer = made(norm=0.5)
    rows = gradients(0.1, 0.5 - 1e-9, 0.7, 90.0)
    parameter.grad_sample = rows  # type: ignore[attr-defined]
    optimizer.accumulate()
    optimizer.step()
    expected = (rows * (0.5 / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(0) / 10
    assert (-parameter - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("short", "long"), [(10, 0), (0, 10), (5, 5), (0, 0), (3, 0)])
def test_the_norm_moves_by_the_share_of_short_gradients_of_the_public_batch(short: int, long: int) -> None:
    parameter, optimizer = made(norm=2.0, quantile=0.5, rate=0.3)
    if short + long:
        parameter.grad_sample = gradients(*[1.0] * short, *[3.0] * long)  # type: ignore[attr-defined]
        optimizer.accumulate()
    optimizer.step()
    share = 0.5 + (short - long) / 2 / 10  # who isn't there counts as half: an empty batch moves nothing
    assert optimizer.clipping_norm == pytest.approx(2.0 * math.exp(-0.3 * (share - 0.5)), rel=1e-5)


def test_it_finds_the_quantile() -> None:
    parameter, optimizer = made(norm=100.0, quantile=0.5, rate=0.5, batch=40)
    lengths = torch.linspace(0.5, 1.5, 41)[:40]
    for _ in range(60):
        parameter.grad_sample = gradients(*lengths.tolist())  # type: ignore[attr-defined]
        optimizer.accumulate()
        optimizer.step()
    assert optimizer.clipping_norm == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("bad", [0.0, 1e-30, 1.0, 1e100, 1e200, math.nan, math.inf])
@pytest.mark.parametrize("norm", [1e-3, 1.0, 1e3])
def test_rule_9_one_example_moves_gradient_and_bit_together_by_the_whole_at_most(bad: float, norm: float) -> None:
    sums = []
    rows = gradients(1.0, 0.5, 3.0, 1.0)
    rows[3] *= bad
    for count in (3, 4):
        parameter, optimizer = made(norm=norm)
        parameter.grad_sample = rows[:count]  # type: ignore[attr-defined]
        optimizer.accumulate()
        sums.append([*parameter.summed_grad.tolist(), optimizer._bits])  # type: ignore[attr-defined]
        steps = optimizer._grid.steps
    moved = math.sqrt(sum((a - b) ** 2 for a, b in zip(*sums, strict=True)))
    assert moved <= steps
    if math.isfinite(bad) and bad < 1e150:
        assert moved >= (0.2 if bad < norm / 10 else 0.99) * steps
    if not math.isfinite(bad):
        assert moved == 0


def test_noise_of_the_priced_size_is_on_every_number_the_bit_included() -> None:
    recorder = Recorder(b"none")
    _, optimizer = made(sigma=1.7, noise=recorder)
    optimizer.step()
    assert recorder.asked == ((D + 1,), 1.7 * optimizer._grid.steps)
    shares = []
    for _ in range(400):
        _, optimizer = made(sigma=1.0, noise=SecretNoise(), rate=1.0)
        optimizer.step()
        shares.append(-math.log(optimizer.clipping_norm) * 10)  # noise on the sum of centred bits, in examples
    # Its deviation is count_noise: sigma / (2 w) with w = sigma / (2 count_noise).
    assert stats.kstest(shares, stats.norm(scale=2.0).cdf).pvalue > FALSE_ALARM


def test_microbatches_of_a_step_share_its_norm() -> None:
    rows = gradients(0.2, 5.0, 0.9, 7.0)
    steps = []
    for parts in ([rows], [rows[:1], rows[1:]]):
        parameter, optimizer = made()
        for part in parts:
            parameter.grad_sample = part  # type: ignore[attr-defined]
            optimizer.accumulate()
        optimizer.step()
        steps.append((parameter.detach().clone(), optimizer.clipping_norm))
    assert torch.equal(steps[0][0], steps[1][0])
    assert steps[0][1] == steps[1][1]


def test_too_little_noise_on_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match=r"count_noise 2\.0 is too little"):
        made(sigma=4.0)
