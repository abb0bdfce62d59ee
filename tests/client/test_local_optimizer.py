"""The optimisers of plain training are torch's, to the bit."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.local_optimizer import LocalOptimizer
from tests.client.local_training import optimiser, plain

SHAPES = ((3, 4), (5,), ())

RATES = st.sampled_from([1e-4, 0.05, 1.0])
DECAYS = st.sampled_from([0.0, 1e-3, 0.3])
BETAS = st.sampled_from([0.0, 0.5, 0.9, 0.999])
KINDS = st.one_of(
    st.fixed_dictionaries(
        {"optimizer": st.just("sgd"), "momentum": st.sampled_from([0.0, 0.5, 0.99]), "weight_decay": DECAYS}
    ),
    st.fixed_dictionaries(
        {"optimizer": st.sampled_from(["adam", "adamw"]), "betas": st.tuples(BETAS, BETAS), "weight_decay": DECAYS}
    ),
)


class Bare(nn.Module):
    """Parameters alone."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES)


def gradients(seed: int, which: list[bool]) -> list[Tensor | None]:
    """One for each parameter; None where it has no part in the step."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator) if part else None for shape, part in zip(SHAPES, which, strict=True)
    ]


def pulled(model: nn.Module, anchors: list[Tensor], mu: float) -> None:
    """FedProx's term, added by hand."""
    for p, anchor in zip(model.parameters(), anchors, strict=True):
        if p.grad is not None and mu > 0:
            p.grad.add_(p.detach() - anchor, alpha=mu)


@given(
    kind=KINDS,
    rate=RATES,
    mu=st.sampled_from([0.0, 0.01, 2.0]),
    steps=st.lists(st.lists(st.booleans(), min_size=len(SHAPES), max_size=len(SHAPES)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_steps_are_those_of_torchs_classes_to_the_bit(
    kind: dict[str, Any], rate: float, mu: float, steps: list[list[bool]], seed: int
) -> None:
    plan = plain(learning_rate=rate, proximal_mu=mu, **kind)
    model, reference = Bare(seed), Bare(seed)
    anchors = [p.detach().clone() for p in reference.parameters()]
    own, torchs = LocalOptimizer(list(model.parameters()), plan.training, rate), optimiser(reference, plan, rate)
    for number, which in enumerate(steps):
        own.zero_grad()
        torchs.zero_grad()
        assert all(p.grad is None for p in model.parameters())
        for module in (model, reference):
            for p, gradient in zip(module.parameters(), gradients(seed + number, which), strict=True):
                p.grad = gradient
        pulled(reference, anchors, mu)
        own.step()
        torchs.step()
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), reference.parameters(), strict=True))


def test_steps_leave_no_trace_for_the_next_backward_pass() -> None:
    model = Bare(1)
    own = LocalOptimizer(list(model.parameters()), plain(proximal_mu=0.5, momentum=0.9).training, 0.1)
    for _ in range(2):
        own.zero_grad()
        sum((p**2).sum() for p in model.parameters()).backward()  # type: ignore[union-attr]
        own.step()
    assert all(p.requires_grad and p.is_leaf and p.grad_fn is None for p in model.parameters())
