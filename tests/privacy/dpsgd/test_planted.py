"""An auditor's gradients go the way of a record's: clipped, summed, noised, in every kind of private step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from privacy.dpsgd.clipping import ClippingMode, clipping_factors
from privacy.dpsgd.engine import DpEngine, private_gradient_step, private_hooks
from privacy.dpsgd.gradient_sum import clipped_gradient_sum
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.dpsgd.planted import PlantedGradients
from privacy.dpsgd.summed_step import SummedStep
from privacy.noise import ReproducibleNoise

NORM = 0.5


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def head() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 2))


def planted(*pairs: tuple[int, float]) -> PlantedGradients:
    return PlantedGradients(torch.tensor([p for p, _ in pairs]), torch.tensor([v for _, v in pairs]))


FEW = planted((0, 7.0), (0, 0.25), (13, -100.0), (25, 1e6))


def expected(size: int) -> np.ndarray:
    whole = np.zeros(size)
    whole[0], whole[13] = NORM + 0.25, -NORM
    if size > 25:
        whole[25] = NORM
    return whole


def test_columns_are_those_of_the_whole_rows_that_are_not_all_zeros() -> None:
    parameters = [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(5))]
    first, second, third = planted((1, 2.0), (9, 3.0), (1, -4.0), (0, 5.0)).columns(parameters)
    assert first.places.tolist() == [0, 1]
    assert first.rows.tolist() == [[0, 2], [0, 0], [0, -4], [5, 0]]
    assert second.places.tolist() == [3]
    assert second.rows.tolist() == [[0], [3], [0], [0]]
    assert third.rows.shape == (4, 0)
    assert first.spread(first.rows.sum(0), 6).tolist() == [5, -2, 0, 0, 0, 0]
    for wrong in (-1, 15):
        with pytest.raises(IndexError):
            planted((wrong, 1.0)).columns(parameters)


@pytest.mark.parametrize("mode", ["flat", "per-layer", "automatic"])
def test_they_are_clipped_as_whole_rows_would_be(mode: ClippingMode) -> None:
    model, few = network(), planted((0, 7.0), (3, 0.1), (14, -2.0), (25, 0.3), (25, 0.4))
    parameters = list(model.parameters())
    whole = torch.zeros(5, 26).scatter_(1, few.places[:, None], few.values[:, None])
    rows = list(torch.split(whole, [p.numel() for p in parameters], dim=1))
    expected = [(r.double() * f[:, None]).sum(0) for r, f in zip(rows, clipping_factors(rows, NORM, mode), strict=True)]
    found = clipped_gradient_sum(model, [], clipping_norm=NORM, mode=mode, planted=few)
    assert found == pytest.approx(torch.cat(expected).numpy(), rel=1e-5)


@pytest.mark.parametrize("model", [network(), head()], ids=["by hooks", "in closed form"])
@pytest.mark.parametrize("examples", [0, 5])
def test_a_sum_has_them_clipped_beside_the_records(model: nn.Module, examples: int) -> None:
    x = torch.randn(examples, 3 if isinstance(model[0], nn.Linear) else 6)
    y = torch.randint(2, (examples,))
    size = sum(p.numel() for p in model.parameters())
    few = FEW.take(torch.arange(4 if size > 25 else 3))
    alone = clipped_gradient_sum(model, [(x, y)] if examples else [], clipping_norm=NORM)
    both = clipped_gradient_sum(model, [(x, y)] if examples else [], clipping_norm=NORM, planted=few)
    assert both - alone == pytest.approx(expected(size), abs=1e-4)


@pytest.mark.parametrize("engine", ["bookkeeping", "opacus"])
def test_a_step_has_them_clipped_and_noised(engine: DpEngine) -> None:
    model = network()
    size = sum(p.numel() for p in model.parameters())
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    noise = ReproducibleNoise(b"planted")
    private = PrivateOptimizer(
        sgd, noise_multiplier=1e-4, clipping_norm=NORM, expected_batch_size=2.0, noise=noise, mode="flat"
    )
    with private_hooks(model, engine):
        private_gradient_step(model, private, nn.CrossEntropyLoss(reduction="sum"), [], planted=FEW)
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    assert 2 * moved.double().numpy() == pytest.approx(expected(size), abs=1e-3)
    assert (moved[1:13] != 0).all(), "there is noise on every coordinate"


def test_a_step_in_closed_form_has_them_too() -> None:
    model = head()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    summed = SummedStep(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        noise_multiplier=1e-4,
        clipping_norm=NORM,
        expected_batch_size=1.0,
        noise=ReproducibleNoise(b"planted"),
    )
    summed.step([], FEW.take(torch.arange(3)))
    moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
    assert moved.double().numpy() == pytest.approx(expected(14), abs=1e-3)


def test_many_may_share_a_coordinate() -> None:
    many = planted(*((i % 26, 1.0) for i in range(300)))
    whole = clipped_gradient_sum(network(), [], clipping_norm=NORM, planted=many)
    assert whole == pytest.approx(NORM * np.bincount(np.arange(300) % 26, minlength=26), rel=1e-4)
    assert many.total(26) == pytest.approx(np.bincount(np.arange(300) % 26, minlength=26))


def test_what_is_no_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="2 places for 1"):
        PlantedGradients(torch.tensor([1, 2]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="int64 places"):
        PlantedGradients(torch.tensor([1.0]), torch.tensor([1.0]))
