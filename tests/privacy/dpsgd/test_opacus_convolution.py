"""A convolution's per-example gradients are those that each example has alone, however its images lie in memory."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from privacy.dpsgd.engine import private_hooks


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def odd_stride(images: Tensor) -> Tensor:
    """As `array[:, None]` leaves them: contiguous, for an axis of length 1 is nowhere else, but the stride says 1."""
    height, width = images.shape[2:]
    return images.as_strided(images.shape, (height * width, 1, width, 1)) if images.shape[1] == 1 else images


def row_major(images: Tensor) -> Tensor:
    return images


def network(channels: int) -> nn.Module:
    """Two convolutions, for what comes out of the first lies in memory as its input did."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, stride=2, groups=2, dilation=2, padding=1),
        nn.Flatten(),
        nn.Linear(36, 3),
    ).double()


def by_hooks(model: nn.Module, images: Tensor) -> list[Tensor]:
    with private_hooks(model):
        torch.autograd.backward(model(images).square().sum())
        return [parameter.grad_sample.clone() for parameter in model.parameters()]  # type: ignore[operator,union-attr]


def one_by_one(model: nn.Module, images: Tensor) -> list[Tensor]:
    """By autograd, without hooks, each example alone and in row-major order."""
    found = []
    for image in images.contiguous().split(1):
        found.append(torch.autograd.grad(model(image.clone()).square().sum(), list(model.parameters())))
    return [torch.stack(gradients) for gradients in zip(*found, strict=True)]


@pytest.mark.parametrize("layout", [row_major, channels_last, odd_stride])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("examples", [1, 2, 5])
def test_rule_7_gradients_are_those_of_each_example_alone(
    layout: Callable[[Tensor], Tensor], channels: int, examples: int
) -> None:
    model = network(channels)
    images = torch.randn(examples, channels, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    given = layout(images)
    assert torch.equal(given, images)
    for found, expected in zip(by_hooks(model, given), one_by_one(model, images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_rule_7_the_digits_give_gradients_of_their_own_whatever_the_batch() -> None:
    """They come with the odd stride."""
    from client.datasets.registry import load
    from shared_models.plan_data import DataPlan

    images = load(DataPlan(name="digits"), split_key=bytes(32)).train.x[:3].double()
    model = network(1)
    whole = by_hooks(model, images)
    for place, image in enumerate(images.split(1)):
        for alone, among in zip(by_hooks(model, image), whole, strict=True):
            torch.testing.assert_close(among[place], alone[0], rtol=1e-9, atol=1e-12)
