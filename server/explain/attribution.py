"""Integrated gradients (Sundararajan, Taly, Yan 2017, arXiv 1703.01365), by Captum.

A network's score F(x) for a class is taken apart into one number for each input: (x - x0) times the mean of the
gradient of F on the straight way from a baseline x0 to x. They add up to F(x) - F(x0) (the paper's completeness, its
proposition 1), but for what a finite number of steps misses; that gap is measured.

The score is the log-odds of the class, log p - log(1 - p): it moves on where a probability is close to one already, and
for two classes and a linear network each input's number is its weight times (x - x0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from security.errors import UsageError
from shared_models.minilm import Minilm

Network = Callable[[Tensor], Tensor]

_AT_ONCE: Final = 16  # examples along the way
FIRST_STEPS: Final = 64
MOST_STEPS: Final = 1024
"""Taken where nobody says how many, if fewer leave a gap: at a constant baseline norms bend the way sharply."""
MOST_GAP: Final = 0.02
"""Of all attributions' sizes together: what a completeness gap may be."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What each input adds to a score.

    Attributes:
        values: the attributions, float32 (*shape of the inputs).
        target: number of the class.
        probability, score: of that class, given the inputs; the score is its log-odds.
        base_probability, base_score: likewise, given the baseline.
        steps: gradients along the way.
    """

    values: Tensor
    target: int
    probability: float
    score: float
    base_probability: float
    base_score: float
    steps: int

    @property
    def gap(self) -> float:
        """How far the attributions' sum is from the difference of the scores, over the sum of their sizes."""
        missed = abs(float(self.values.double().sum()) - (self.score - self.base_score))
        weight = float(self.values.double().abs().sum())
        return 0.0 if missed < 1e-6 else missed / weight if weight > 0 else float("inf")

    @property
    def adds_up(self) -> bool:
        """Whether the gap is small."""
        return self.gap <= MOST_GAP


def log_odds(logits: Tensor, target: int) -> Tensor:
    """log p - log(1 - p) of a class (n,), of logits (n, classes)."""
    others = torch.cat([logits[:, :target], logits[:, target + 1 :]], dim=1)
    return logits[:, target] - others.logsumexp(dim=1)


def attribute(
    network: Network, inputs: Tensor, baseline: Tensor, *, target: int | None, steps: int | None = None
) -> Attribution:
    """Take one answer apart.

    Args:
        network: maps (n, *shape) to logits (n, classes).
        inputs, baseline: (*shape), real numbers.
        target: number of a class; None: the one that the network guesses.
        steps: gradients along the way (Gauss-Legendre quadrature), at least 2; None: `FIRST_STEPS`, and twice as many
            while there is a gap, up to `MOST_STEPS`.

    Raises:
        UsageError: Captum isn't installed; no gradient gets to the inputs; or the network's answer isn't finite.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise UsageError("veil explain: needs captum; pip install 'veil-fl[explain]'") from error
    with torch.no_grad():
        logits = network(torch.stack([baseline, inputs])).float()
    if not logits.isfinite().all():
        raise UsageError("veil explain: the network's answer is not finite; there is nothing to explain")
    chosen = int(logits[1].argmax()) if target is None else target
    base, score = log_odds(logits, chosen).tolist()
    chances = logits.softmax(1)[:, chosen].tolist()
    way = IntegratedGradients(lambda x: log_odds(network(x), chosen))
    taken = FIRST_STEPS if steps is None else steps
    while True:
        found = Attribution(
            values=_integral(way, inputs, baseline, taken),
            target=chosen,
            probability=chances[1],
            score=score,
            base_probability=chances[0],
            base_score=base,
            steps=taken,
        )
        if steps is not None or found.adds_up or taken >= MOST_STEPS:
            return found
        taken *= 2


def _integral(way: Any, inputs: Tensor, baseline: Tensor, steps: int) -> Tensor:
    try:
        found = way.attribute(inputs[None], baselines=baseline[None], n_steps=steps, internal_batch_size=_AT_ONCE)
    except RuntimeError as error:  # torch's, where an input isn't in the graph
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"veil explain: no gradient gets to this network's inputs ({reason})") from error
    values: Tensor = found[0].detach().float()
    return values


@contextmanager
def of_embeddings(network: nn.Module, tokens: Tensor) -> Iterator[tuple[Network, Callable[[Tensor], Tensor]]]:
    """A network of texts as one of what its embedding layer makes of them: tokens have no gradient.

    What is done with the tokens beside embedding them (which places hold something) stays that of `tokens`.

    Args:
        network: maps tokens (n, places) to logits.
        tokens: of the text, (places,), as numbers.

    Yields:
        The function of (n, places, width); and what makes tokens (places,) into (places, width).

    Raises:
        UsageError: no layer embeds the tokens.
    """
    layer = _embedding(network, tokens)
    for module in network.modules():
        if isinstance(module, Minilm):
            module.frozen = 0  # it keeps no graph of layers that don't learn

    def function(states: Tensor) -> Tensor:
        with _hooked(layer, states):
            logits: Tensor = network(tokens.expand(len(states), -1))
        return logits

    yield function, lambda some: layer(some.long()).detach()


def _embedding(network: nn.Module, tokens: Tensor) -> nn.Embedding:
    found: list[nn.Embedding] = []

    def seen(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, nn.Embedding)
        if given[0].shape[-1:] == tokens.shape and torch.equal(given[0].reshape(-1), tokens.long()):
            found.append(module)

    layers = [module for module in network.modules() if isinstance(module, nn.Embedding)]
    hooks = [layer.register_forward_pre_hook(seen) for layer in layers]
    try:
        with torch.no_grad():
            network(tokens[None])
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise UsageError("veil explain: no embedding layer of this network takes the text's tokens; can't explain it")
    return found[0]


@contextmanager
def _hooked(layer: nn.Module, states: Tensor) -> Iterator[None]:
    """The layer gives these states, whatever it is asked."""
    hook = layer.register_forward_hook(lambda *_: states)
    try:
        yield
    finally:
        hook.remove()
