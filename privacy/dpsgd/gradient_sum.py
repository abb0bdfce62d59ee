"""The sum of clipped gradients that one client puts into a joint step of DP-SGD: no noise yet, and no rounding.

It is made in float64 and must never leave as it is: `privacy.secure_encoding.encode_gradients` takes it to the grid and
adds the client's share of noise. What one record moves it by is its clipped gradient, C long at most, and what adding
up in float64 makes of that. With n records in parts of m (m <= `_PART`), u = 2^-53: the sum within a part is off by
m u times the sum of the lengths (Higham 2002, section 4.2), m^2 u C at most; parts are added with compensation
(Neumaier 1974), which is off by 2 u n C; so two neighbouring sums are apart by C (1 + 2 n (m + 2) u) at most. For n up
to 10^8 records that is within C (1 + 2^-12), which `privacy.example_sum_grid.SLACK` allows for.

Two ways lead there. Where all that is trained is one linear layer at the end, the gradient of an example is the outer
product of the layer's input and of (probabilities - label), its length the product of theirs: a step is two products of
matrices, in float64. Any other network goes through
`privacy.dpsgd.engine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.dpsgd.clipping import ClippingMode, clipping_factors
from privacy.dpsgd.copies import join_copies
from privacy.dpsgd.engine import DpEngine, check_layers, private_hooks
from privacy.dpsgd.example_loss import PLAIN, ExampleLoss
from privacy.dpsgd.linear_head import LinearHead, linear_head
from privacy.dpsgd.optimizer import as_rows, check_per_example, free_per_example, per_example_gradients
from privacy.dpsgd.planted import PlantedGradients
from privacy.dpsgd.precision import Precision, outputs

_PART = 1 << 12  # examples that are added up without compensation
MOST_EXAMPLES = 10**8
"""Of one sum: for more of them the bound above isn't shown."""


def clipped_gradient_sum(
    model: nn.Module,
    microbatches: Iterable[tuple[Tensor, Tensor]],
    *,
    clipping_norm: float,
    mode: ClippingMode = "flat",
    loss: ExampleLoss = PLAIN,
    engine: DpEngine = "bookkeeping",
    precision: Precision = "float32",
    copies: int = 1,
    planted: PlantedGradients | None = None,
) -> npt.NDArray[np.float64]:
    """The sum over examples of the gradient of their loss, each clipped to a norm.

    A gradient that is not finite adds zero (rule 5). Without examples the sum is zero.

    Args:
        model: in training mode; float32.
        microbatches: (inputs, classes), together each example of a batch once.
        clipping_norm: C, over all trained parameters together.
        mode: how gradients are clipped.
        loss: of single examples.
        engine: what makes them, where it isn't in closed form.
        precision: what the layers compute in; of a linear head, those below it.
        copies: of each record that stand beside each other in a batch (`privacy.dpsgd.copies`), and count as one.
        planted: gradients of an auditor's, each as that of one more example.

    Returns:
        Flat, in the order of the trained parameters.

    Raises:
        UsageError: a layer mixes the examples of a batch, or has no per-example gradients.
        ValueError: more than `MOST_EXAMPLES`.
    """
    check_layers(model)
    parts = _parts(microbatches, copies)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = _Compensated(sum(parameter.numel() for parameter in trained))
    first = next(parts, None)
    if first is not None:
        head = linear_head(model, first[0]) if copies == 1 else None  # a mean of copies is no outer product
        parts_too = chain([first], parts)
        found = (
            _of_hooks(model, trained, parts_too, clipping_norm, mode, loss, engine, precision, copies)
            if head is None
            else _of_head(model, head, parts_too, clipping_norm, mode, loss, precision)
        )
        for part in found:
            total.add(part.cpu())
    if planted is not None and len(planted):
        columns = planted.columns(trained)
        sums = _clipped_rows([some.rows for some in columns], clipping_norm, mode)
        spread = [some.spread(part, p.numel()) for some, part, p in zip(columns, sums, trained, strict=True)]
        total.add(torch.cat(spread).cpu())
    return total.value().numpy()


def _parts(microbatches: Iterable[tuple[Tensor, Tensor]], copies: int) -> Iterator[tuple[Tensor, Tensor]]:
    seen, size = 0, max(1, _PART // copies) * copies
    for x, y in microbatches:
        seen += len(y) // copies
        if seen > MOST_EXAMPLES:
            raise ValueError(f"more than {MOST_EXAMPLES} examples in one sum of gradients")
        yield from ((x[i : i + size], y[i : i + size]) for i in range(0, len(y), size))


def _of_head(
    model: nn.Module,
    head: LinearHead,
    parts: Iterable[tuple[Tensor, Tensor]],
    clipping_norm: float,
    mode: ClippingMode,
    loss: ExampleLoss,
    precision: Precision,
) -> Iterator[Tensor]:
    for inputs, classes in parts:
        yield head.clipped_sum(head.features(model, inputs, precision), classes, clipping_norm, mode, loss)


def _of_hooks(
    model: nn.Module,
    trained: list[nn.Parameter],
    parts: Iterable[tuple[Tensor, Tensor]],
    clipping_norm: float,
    mode: ClippingMode,
    loss: ExampleLoss,
    engine: DpEngine,
    precision: Precision,
    copies: int,
) -> Iterator[Tensor]:
    with private_hooks(model, engine):
        for inputs, classes in parts:
            torch.autograd.backward(loss(outputs(model, inputs, precision), classes) / copies)
            join_copies(trained, copies)
            check_per_example(trained, len(classes) // copies)
            gradients = [as_rows(gradient) for gradient in per_example_gradients(trained)]
            found = _clipped_rows(gradients, clipping_norm, mode)
            free_per_example(trained)
            yield torch.cat(found)


def _clipped_rows(gradients: list[Tensor], clipping_norm: float, mode: ClippingMode) -> list[Tensor]:
    factors = clipping_factors(gradients, clipping_norm, mode)
    usable = factors[0] > 0  # 0 x NaN is NaN: such rows have to go
    return [
        (rows[usable].double() * scale[usable][:, None]).sum(0) for rows, scale in zip(gradients, factors, strict=True)
    ]


class _Compensated:
    """A sum whose error doesn't grow with the number of its terms (Neumaier 1974)."""

    def __init__(self, size: int) -> None:
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._lost = torch.zeros(size, dtype=torch.float64)

    def add(self, part: Tensor) -> None:
        total = self._sum + part
        larger = self._sum.abs() >= part.abs()
        self._lost += torch.where(larger, (self._sum - total) + part, (part - total) + self._sum)
        self._sum = total

    def value(self) -> Tensor:
        return self._sum + self._lost
