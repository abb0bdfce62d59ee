"""Integrated gradients beside closed forms, a brute-force integral, and their own sum."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from security.errors import UsageError
from server.explain.attribution import MOST_GAP, attribute, log_odds, of_embeddings

pytest.importorskip("captum")


def linear(weights: Tensor) -> nn.Linear:
    layer = nn.Linear(weights.shape[1], weights.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weights)
    return layer


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_of_two_classes_and_a_linear_network_each_is_its_weight_times_the_difference() -> None:
    weights, x, base = drawn(2, 5), drawn(5, seed=1), drawn(5, seed=2)
    for target, sign in ((0, 1.0), (1, -1.0)):
        found = attribute(linear(weights), x, base, target=target, steps=8)
        torch.testing.assert_close(found.values, sign * (weights[0] - weights[1]) * (x - base), rtol=1e-5, atol=1e-6)
        assert found.adds_up


def test_log_odds_are_those_of_the_probability() -> None:
    logits = drawn(6, 4)
    for target in range(4):
        chance = logits.double().softmax(1)[:, target]
        torch.testing.assert_close(
            log_odds(logits, target).double(), (chance / (1 - chance)).log(), rtol=1e-5, atol=1e-5
        )


def test_a_curved_network_is_the_integral_by_brute_force() -> None:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    x, base = 2 * drawn(4, seed=4), drawn(4, seed=5)
    found = attribute(network, x, base, target=1, steps=64)
    n = 4000  # midpoints
    way = (base + (torch.arange(n)[:, None] + 0.5) / n * (x - base)).requires_grad_()
    (gradients,) = torch.autograd.grad(log_odds(network(way), 1).sum(), way)
    torch.testing.assert_close(found.values, (x - base) * gradients.mean(0), rtol=1e-3, atol=1e-4)
    assert found.gap < 1e-4


def test_the_guess_is_explained_where_no_class_is_named() -> None:
    network, x = linear(torch.eye(3)), torch.tensor([0.0, 5.0, 1.0])
    found = attribute(network, x, torch.zeros(3), target=None)
    assert found.target == 1
    with torch.no_grad():
        chance, base = (network(given).softmax(0)[1].item() for given in (x, torch.zeros(3)))
    assert found.probability == pytest.approx(chance, rel=1e-5)
    assert found.base_probability == pytest.approx(base, rel=1e-5)


class Cliff(nn.Module):
    """Nearly a step: few points along the way miss where it is."""

    def forward(self, x: Tensor) -> Tensor:
        score = torch.tanh(3000 * (x.sum(1) - 0.4137))
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_a_gap_is_measured_and_more_steps_are_taken_only_where_nobody_says_how_many() -> None:
    x, base = torch.ones(2) / 2, torch.zeros(2)
    few = attribute(Cliff(), x, base, target=0, steps=4)
    assert few.steps == 4
    assert few.gap > MOST_GAP
    assert not few.adds_up
    more = attribute(Cliff(), x, base, target=0)
    assert more.steps > 64


def test_what_moves_nothing_gets_nothing_and_adds_up() -> None:
    found = attribute(linear(torch.zeros(2, 3)), torch.ones(3), torch.zeros(3), target=0)
    assert not found.values.any()
    assert found.gap == 0


class Cut(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.detach().sum(1), x.detach().sum(1)], 1)


class Unfinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 2), float("nan"))


@pytest.mark.parametrize(("network", "reason"), [(Cut(), "no gradient gets to"), (Unfinite(), "is not finite")])
def test_what_cannot_be_explained_is_one_line(network: nn.Module, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        attribute(network, torch.ones(2), torch.zeros(2), target=0)
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UsageError, match=r"needs captum; pip install 'veil-fl\[explain\]'"):
        attribute(linear(torch.eye(2)), torch.ones(2), torch.zeros(2), target=0)


class Bag(nn.Module):
    """Sums embeddings: of two classes each token's part is a closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(4, 3)
        self.embed = nn.Embedding(10, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        states: Tensor = self.embed(tokens.long()) + self.places(torch.arange(tokens.shape[1]))
        logits: Tensor = self.head((states * (tokens != 0)[..., None]).sum(1))
        return logits


def test_tokens_go_through_their_embedding_and_no_other() -> None:
    torch.manual_seed(0)
    network, tokens = Bag().eval(), torch.tensor([3.0, 7.0, 7.0, 0.0])
    with of_embeddings(network, tokens) as (function, embedded):
        found = attribute(function, embedded(tokens), embedded(torch.zeros(4)), target=0, steps=8)
    assert found.adds_up
    with torch.no_grad():
        weights = network.head.weight[0] - network.head.weight[1]
        closed = (network.embed.weight[tokens.long()] - network.embed.weight[0]) @ weights
    torch.testing.assert_close(found.values.sum(1), closed, rtol=1e-4, atol=1e-5)
    assert not found.values[3].any()
    # The network is as before.
    assert not network.embed._forward_hooks
    assert not network.embed._forward_pre_hooks


def test_a_network_without_an_embedding_of_tokens_is_told() -> None:
    class OneHot(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return nn.functional.one_hot(tokens.long(), 10).float().sum(1)[:, :2]

    with pytest.raises(UsageError, match="no embedding layer"), of_embeddings(OneHot(), torch.ones(4)):
        pass
