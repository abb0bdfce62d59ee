"""Low-rank adapters: what they compute, what they train, and that folding them in changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from privacy.dpsgd.engine import private_hooks
from shared_models.example_form import ExampleForm
from shared_models.lora import LoraLinear, add_lora, merge_lora
from shared_models.registry import build


def transformer() -> nn.Module:
    return build("transformer", {"dim": 16, "heads": 2}, form=ExampleForm((6,), 3, vocabulary=20), seed=1)


def test_an_adapter_begins_as_the_layer_itself() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 2, 5)
    expected = layer(x)
    assert torch.equal(LoraLinear(layer, rank=2, alpha=4)(x), expected)


def test_it_adds_the_scaled_product_of_its_factors() -> None:
    layer = nn.Linear(5, 4, bias=False).double()
    adapted, x = LoraLinear(layer, rank=2, alpha=3).double(), torch.randn(7, 5, dtype=torch.float64)
    nn.init.normal_(adapted.up.weight)
    whole = layer.weight + 3 / 2 * adapted.up.weight @ adapted.down.weight
    torch.testing.assert_close(adapted(x), x @ whole.T)
    torch.testing.assert_close(adapted.merged().double()(x), x @ whole.T, rtol=1e-6, atol=1e-6)


def test_only_adapters_learn_and_they_are_few() -> None:
    model = transformer()
    whole = sum(p.numel() for p in model.parameters())
    assert add_lora(model, {"query", "value"}, rank=2, alpha=4) == 4  # two blocks, two layers each
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert all(".down." in name or ".up." in name for name in trained)
    assert sum(trained.values()) == 4 * 2 * (16 + 16) < whole / 10


def test_a_private_engine_makes_the_gradients_of_its_factors() -> None:
    model = transformer().double().train()
    add_lora(model, {"query", "value"}, rank=2, alpha=4)
    model.double()
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up.weight, std=0.1)
    x, y = torch.randint(1, 20, (5, 6)).double(), torch.tensor([0, 1, 2, 0, 1])
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    alone = [
        torch.autograd.grad(nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), list(trained.values()))
        for i in range(5)
    ]
    with private_hooks(model):
        torch.autograd.backward(nn.functional.cross_entropy(model(x), y, reduction="sum"))
        for number, parameter in enumerate(trained.values()):
            found = parameter.grad_sample  # type: ignore[attr-defined]
            rows = found if isinstance(found, torch.Tensor) else found.rows()
            torch.testing.assert_close(rows, torch.stack([one[number] for one in alone]), rtol=1e-9, atol=1e-12)
            assert rows.abs().max() > 0


def test_folding_adapters_in_changes_nothing_and_leaves_ordinary_layers() -> None:
    model = transformer().eval()
    add_lora(model, {"query", "value"}, rank=2, alpha=4)
    for module in model.modules():
        if isinstance(module, LoraLinear):
            nn.init.normal_(module.up.weight)
    x = torch.randint(1, 20, (5, 6)).float()
    with torch.no_grad():
        before = model(x)
        merged = merge_lora(model)
        torch.testing.assert_close(merged(x), before, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, LoraLinear) for module in merged.modules())


def test_a_target_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"no linear layer is called q_proj; there are: .*query.*value"):
        add_lora(transformer(), {"q_proj"}, rank=2, alpha=4)


def test_a_rank_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LoraLinear(nn.Linear(2, 2), rank=0, alpha=1)
