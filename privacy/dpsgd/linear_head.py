"""Softmax regression on fixed features: clipped gradients in closed form.

With features x (and 1 for the bias) and s the slopes of an example's loss by its logits (probabilities less label, for
cross-entropy), the gradient of the example is the outer product s x^T, and its norm |s| |x|. So the clipped sum is one
product of matrices, and no gradient of a single example is ever formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from privacy.dpsgd.clipping import STABLE, ClippingMode
from privacy.dpsgd.example_loss import PLAIN, ExampleLoss
from privacy.dpsgd.precision import Precision, outputs

_ROWS = 64  # whose features in float64 stay in the cache


@dataclass(frozen=True)
class LinearHead:
    """The only trained layer of a network, at its end.

    Attributes:
        layer: its weight, and its bias if it has one, are all that is trained.
    """

    layer: nn.Linear

    def features(self, model: nn.Module, inputs: Tensor, precision: Precision = "float32") -> Tensor:
        """What the layer is given, of shape (examples, features). The layer itself isn't run."""

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            raise _ReachedError(given[0])

        hook = self.layer.register_forward_pre_hook(stop)
        try:
            with torch.no_grad():
                outputs(model, inputs, precision)
        except _ReachedError as reached:
            return reached.given
        finally:
            hook.remove()
        raise RuntimeError("the network didn't come to its head")

    def clipped_sum(
        self,
        features: Tensor,
        classes: Tensor,
        clipping_norm: float,
        mode: ClippingMode = "flat",
        loss: ExampleLoss = PLAIN,
    ) -> Tensor:
        """The sum of the clipped gradients: flat, weight first, float64. One that is not finite adds zero.

        Args:
            features: (examples, features).
            classes: (examples,), int64.
            clipping_norm: C, over weight and bias together.
            mode: how gradients are clipped.
            loss: of single examples.
        """
        weight, bias = self.layer.weight.detach().double(), self.layer.bias
        total = torch.zeros_like(weight)
        of_bias = torch.zeros_like(weight[:, 0])
        rows = torch.empty(_ROWS, weight.shape[1], dtype=torch.float64, device=weight.device)
        for start in range(0, len(classes), _ROWS):
            labels = classes[start : start + _ROWS]
            x = rows[: len(labels)].copy_(features[start : start + _ROWS])
            logits = (weight @ x.T).T  # this way round the product is twice as fast
            slopes = loss.slopes(logits if bias is None else logits + bias.detach().double(), labels)
            of_weight, of_one = _factors(
                vector_norm(x, dim=1), vector_norm(slopes, dim=1), clipping_norm, mode, biased=bias is not None
            )
            # One that is not finite drops out, and 0 x NaN would be NaN.
            usable = of_weight.isfinite()
            x = torch.where(x.isfinite(), x, 0.0) if not bool(usable.all()) else x
            total.addmm_(torch.where(usable[:, None], slopes * of_weight[:, None], 0.0).T, x)
            of_bias += torch.where(usable[:, None], slopes * of_one[:, None], 0.0).sum(0)
        return torch.cat([total.flatten(), of_bias] if bias is not None else [total.flatten()])


def _factors(
    features: Tensor, slopes: Tensor, clipping_norm: float, mode: ClippingMode, *, biased: bool
) -> tuple[Tensor, Tensor]:
    """Of the weight's gradients and the bias's, by the lengths of features and slopes; not finite where these aren't.

    The gradient of the bias is the slopes themselves, as of a feature that is always 1.
    """
    finite = torch.where(features.isfinite() & slopes.isfinite(), 0.0, torch.nan)
    if mode == "per-layer" and biased:
        share = clipping_norm / math.sqrt(2)
        of_weight, of_bias = share / (features * slopes), share / slopes
        return of_weight.clamp(max=1) + finite, of_bias.clamp(max=1) + finite
    norms = (features.square() + biased).sqrt() * slopes
    if mode == "automatic":
        factors = clipping_norm / (norms + STABLE) + finite
    else:
        factors = (clipping_norm / norms).clamp(max=1) + finite
    return factors, factors


class _ReachedError(Exception):
    """The head is reached; no fault."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given


def linear_head(model: nn.Module, inputs: Tensor) -> LinearHead | None:
    """The network's linear head, if all that is trained is one linear layer at its end; else None.

    Args:
        model: any.
        inputs: some that it is run on, to see where the layer stands.
    """
    trained = [module for module in model.modules() if any(p.requires_grad for p in module.parameters(recurse=False))]
    if len(trained) != 1 or type(trained[0]) is not nn.Linear:
        return None
    layer = trained[0]
    calls = _run(model, layer, inputs[:1])
    ends = len(calls) == 1 and calls[0][0].shape == (1, layer.in_features) and calls[0][1]
    return LinearHead(layer) if ends and all(p.requires_grad for p in layer.parameters()) else None


def _run(model: nn.Module, layer: nn.Linear, inputs: Tensor) -> list[tuple[Tensor, bool]]:
    """What a layer was given, each time that it was called, and whether what it made is what the network returned."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    try:
        with torch.no_grad():
            logits = model(inputs)
    finally:
        hook.remove()
    return [(given, made is logits) for given, made in seen]
