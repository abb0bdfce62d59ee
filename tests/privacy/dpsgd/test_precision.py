"""Networks run in bfloat16: gradients of single examples as before, but for roundings."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.linalg import vector_norm

from privacy.dpsgd.engine import private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.optimizer import PrivateOptimizer, as_rows, per_example_gradients
from privacy.dpsgd.precision import Precision, outputs
from privacy.noise import ReproducibleNoise
from shared_models.example_form import ExampleForm
from shared_models.registry import build
from tests.shared_models.zoo import NAMES, examples, forms, labels

SHAPE, CLASSES, N = (1, 12, 12), 3, 12


def network(kind: str) -> nn.Module:
    return build(kind, {}, form=ExampleForm(SHAPE, CLASSES), seed=1).train()


def data(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, *SHAPE, generator=generator), torch.randint(CLASSES, (n,), generator=generator)


def of_its_form(kind: str) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network with examples that it takes."""
    if ExampleForm((1, 8, 8), 4) in forms(kind):
        return network(kind), data()
    form = forms(kind)[0]
    return build(kind, {}, form=form, seed=1).train(), (examples(form, N), labels(form, N))


def gradients(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: Precision) -> torch.Tensor:
    with private_hooks(model):
        torch.autograd.backward(nn.functional.cross_entropy(outputs(model, x, precision), y, reduction="sum"))
        return torch.cat([as_rows(part) for part in per_example_gradients(list(model.parameters()))], dim=1)


def test_float32_is_the_network_as_it_is_in_any_precision() -> None:
    model, (x, _) = network("cnn").double(), data()
    assert torch.equal(outputs(model, x.double()), model(x.double()))


def test_bfloat16_moves_outputs_a_little_and_gives_them_back_in_float32() -> None:
    model, (x, _) = network("cnn"), data()
    found, expected = outputs(model, x, "bfloat16").detach(), model(x).detach()
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("kind", NAMES)
def test_every_network_has_the_gradients_of_float32_up_to_its_roundings(kind: str) -> None:
    model, (x, y) = of_its_form(kind)
    exact, half = (gradients(model, x, y, precision) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert 0 < float(vector_norm(exact - half) / vector_norm(exact)) < 0.15


class Shifted(nn.Module):
    """A parameter of its own and a function of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x: torch.Tensor, named: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Of (n, 4)."""
        more = 0 if named is None else named["more"]
        return nn.functional.linear(x, self.weight) + more


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        (nn.PReLU(), (4,)),
        (Shifted(), (4,)),
        (nn.Sequential(nn.Unflatten(1, (1, 1, 2, 2)), nn.Conv3d(1, 4, (1, 2, 2)), nn.Flatten()), (4,)),
    ],
    ids=["prelu", "own", "conv3d"],
)
def test_layers_without_a_function_of_their_own_fall_back_in_float32(
    between: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(4, 4), between, nn.Linear(4, 3)).train()
    x, y = torch.randn(6, *shape), torch.randint(3, (6,))
    exact, half = (gradients(model, x, y, precision) for precision in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert 0 < float(vector_norm(exact - half) / vector_norm(exact)) < 0.05


@pytest.mark.parametrize("kind", NAMES)
def test_an_examples_gradient_is_that_of_the_example_alone(kind: str) -> None:
    """Of these small networks: kernels may round by the size of the batch, so runs in bfloat16 claim nothing."""
    model, (x, y) = of_its_form(kind)
    together = gradients(model, x, y, "bfloat16")
    alone = torch.cat([gradients(model, x[i : i + 1], y[i : i + 1], "bfloat16") for i in range(N)])
    assert float((vector_norm(together - alone, dim=1) / vector_norm(alone, dim=1)).max()) < 1e-2


def test_one_example_moves_a_sum_by_no_more_than_the_clipping_norm() -> None:
    model, (x, y) = network("cnn"), data()
    x[0] *= 1e4
    whole, without = (
        clipped_gradient_sum(model, [(x[first:], y[first:])], clipping_norm=0.1, precision="bfloat16")
        for first in (0, 1)
    )
    moved = float(vector_norm(torch.from_numpy(whole - without)))
    assert 0.05 < moved <= 0.1 * (1 + 1e-3)


def test_a_step_clips_adds_and_releases_as_ever() -> None:
    changed = []
    for precision in ("float32", "bfloat16"):
        model, (x, y) = network("cnn"), data()
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        optimizer = PrivateOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=1e-4,
            clipping_norm=1.0,
            expected_batch_size=N,
            noise=ReproducibleNoise(b"\x01" * 32),
            values_left_as_factors=values_left_as_factors(model),
        )
        with private_hooks(model):
            loss = nn.CrossEntropyLoss(reduction="sum")
            private_gradient_step(model, optimizer, loss, [(x, y)], precision=precision)
        changed.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert changed[1].dtype == torch.float32
    assert 0 < float((changed[0] - changed[1]).norm() / changed[0].norm()) < 0.1
