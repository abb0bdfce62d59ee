"""For every network that a plan can name, a private step is what each example alone would give, clipped and added."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from privacy.dpsgd.clipping import ClippingMode
from privacy.dpsgd.engine import private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import ReproducibleNoise
from shared_models.example_form import ExampleForm
from shared_models.registry import build
from tests.shared_models.zoo import NAMES, examples, forms, labels

CLIP, N, CLASSES = 0.5, 8, 4


class Silence(ReproducibleNoise):
    """Draws no noise, so that the rest of a step can be seen."""

    __slots__ = ()

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64, device=device)


def network(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    form = ExampleForm((2, 16, 16), CLASSES) if ExampleForm((1, 8, 8), CLASSES) in forms(name) else forms(name)[0]
    options = {"hidden": [256]} if name == "mlp" else {}  # large enough for factors
    model = build(name, options, form=form, seed=5).to(dtype).train()
    x = examples(form, N, dtype=dtype)
    if form.vocabulary is None:
        x = x * torch.logspace(-1, 0.5, N, dtype=dtype).view(N, *[1] * len(form.shape))
    return model, x, labels(form, N)


def gradients_alone(model: nn.Module, x: Tensor, y: Tensor) -> list[list[Tensor]]:
    return [
        [
            part.double()
            for part in torch.autograd.grad(cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(model.parameters()))
        ]
        for i in range(len(x))
    ]


def clipped(gradient: list[Tensor], norm: float, mode: ClippingMode) -> Tensor:
    whole = math.sqrt(sum(float(part.square().sum()) for part in gradient))
    if mode == "per-layer":
        share = norm / math.sqrt(len(gradient))
        return torch.cat([(part * min(1.0, share / max(float(part.norm()), 1e-300))).flatten() for part in gradient])
    factor = norm / (whole + 0.01) if mode == "automatic" else min(1.0, norm / whole)
    return torch.cat([(part * factor).flatten() for part in gradient])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_gradients_equal_those_of_each_example_alone(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, x, y = network(name, dtype)
    expected = gradients_alone(model, x, y)
    with private_hooks(model):
        torch.autograd.backward(cross_entropy(model(x), y, reduction="sum"))
        found = [parameter.grad_sample for parameter in model.parameters()]  # type: ignore[attr-defined]
    rows = [part if isinstance(part, Tensor) else part.rows() for part in found]
    for i, gradient in enumerate(expected):
        whole = math.sqrt(sum(float(part.square().sum()) for part in gradient))
        off = math.sqrt(sum(float((row[i] - part).square().sum()) for row, part in zip(rows, gradient, strict=True)))
        assert off <= tolerance * whole


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["flat", "per-layer", "automatic"])
@pytest.mark.parametrize("most", [1, 3, N])
def test_a_step_is_their_clipped_sum_however_the_batch_is_split(name: str, mode: ClippingMode, most: int) -> None:
    model, x, y = network(name, torch.float64)
    gradients = gradients_alone(model, x, y)
    norms = sorted(math.sqrt(sum(float(part.square().sum()) for part in gradient)) for gradient in gradients)
    norm = norms[N // 2]  # half of them are clipped
    expected = torch.stack([clipped(gradient, norm, mode) for gradient in gradients]).sum(0) / N
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    optimizer = PrivateOptimizer(
        SGD(model.parameters(), lr=1.0),
        noise_multiplier=1.0,
        clipping_norm=norm,
        expected_batch_size=N,
        noise=Silence(b"none"),
        values_left_as_factors=values_left_as_factors(model),
        mode=mode,
    )
    with private_hooks(model):
        parts = [(x[i : i + most], y[i : i + most]) for i in range(0, N, most)]
        private_gradient_step(
            model, optimizer, lambda found, wanted: cross_entropy(found, wanted, reduction="sum"), parts
        )
    moved = before - nn.utils.parameters_to_vector(model.parameters()).detach()
    # The grid takes half a step of 2^-20 of the norm in each coordinate, and sqrt(d) / 2 steps of the norm itself.
    allowed = 2 * norm * 2.0**-20 * math.sqrt(len(expected)) + 1e-6 * float(expected.norm())
    assert (moved - expected).norm() <= allowed
    assert expected.norm() > 100 * allowed
