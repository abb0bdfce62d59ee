"""Per-example gradients of a large linear layer, as the two factors that they are products of.

The gradient of an example is the sum over places t of s_t x_t^T, with x the layer's input and s the slopes of its
output. Its norm follows from products of inputs with inputs and of slopes with slopes (Li et al. 2022, "Large Language
Models Can Be Strong Differentially Private Learners", arXiv 2110.05679, section 4), and the clipped sum is one product
of matrices (Bu et al. 2023, arXiv 2210.00038): no gradient of one example is ever formed.

Such a sum is not rounded example by example (`privacy.dpsgd.clipping`), so what arithmetic makes of it counts. All of
it is in float64, with u = 2^-53. Let B be the sum over t of |s_t| |x_t|: what an example's gradient could be if nothing
cancelled. With one place it is the norm. With more the squared norm is taken to be what was computed and B^2 / 2^20
more. That covers what the computing may be off by, (2 d + T^2) u B^2 for d features and T places, and it means that a
clipped example's B is at most 2^10 C. A product over at most 2048 rows is off by 2051 u of the B in it (Higham 2002,
section 3.5), by 2051 · 2^10 n u C over n examples; adding up n products at most is off by n^2 u C. So two neighbouring
sums are apart by C and twice that at most, which for `MOST_EXAMPLES` is less than
C (1 + `privacy.example_sum_grid.SLACK`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm

MOST_EXAMPLES = 1 << 18
"""Of one sum."""

_ROWS = 2048  # that one product adds up
_CANCELLED = 2.0**-20


@dataclass(frozen=True, eq=False)
class Factors:
    """Gradients of one weight (out, in).

    Attributes:
        slopes: (n, T, out), of the layer's output.
        inputs: (n, T, in).
    """

    slopes: Tensor
    inputs: Tensor

    def __len__(self) -> int:
        return len(self.slopes)

    def chosen(self, which: Tensor) -> Factors:
        """Those of some examples: indices, or a mask (n,)."""
        return Factors(self.slopes[which], self.inputs[which])

    @property
    def numel(self) -> int:
        """Values of one example's gradient."""
        return self.slopes.shape[2] * self.inputs.shape[2]

    def to(self, precision: torch.dtype) -> Factors:
        """The same in another precision."""
        return Factors(self.slopes.to(precision), self.inputs.to(precision))

    def joined(self, other: Factors) -> Factors:
        """The sum of both gradients: those of a layer that is used twice."""
        return Factors(torch.cat([self.slopes, other.slopes], 1), torch.cat([self.inputs, other.inputs], 1))

    def rows(self) -> Tensor:
        """The gradients themselves: (n, out, in)."""
        made: Tensor = torch.bmm(self.slopes.transpose(1, 2), self.inputs)
        return made

    def squared_norms(self) -> Tensor:
        """No less than the squared norm of each example's gradient: (n,), float64."""
        return torch.cat([_squared_norms(slopes.double(), inputs.double()) for slopes, inputs in self._parts()])

    def clipped_sum(self, factors: Tensor) -> Tensor:
        """The sum of factor times gradient: (out, in), float64.

        Args:
            factors: (n,), float64, of examples whose gradients are all finite.
        """
        total = torch.zeros(self.slopes.shape[2], self.inputs.shape[2], dtype=torch.float64, device=self.slopes.device)
        for (slopes, inputs), scale in zip(self._parts(), torch.split(factors, self._at_once), strict=True):
            scaled = slopes.double() * scale[:, None, None]
            total.addmm_(scaled.flatten(0, 1).T, inputs.flatten(0, 1).double())
        return total

    @property
    def _at_once(self) -> int:
        return max(1, _ROWS // self.slopes.shape[1])

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Slopes and inputs of some examples at a time: in float64 all of a batch would take twice its memory."""
        yield from zip(torch.split(self.slopes, self._at_once), torch.split(self.inputs, self._at_once), strict=True)


def _squared_norms(slopes: Tensor, inputs: Tensor) -> Tensor:
    # Over the largest of each example first: so no square underflows while the other factor's is large.
    least = torch.finfo(torch.float64).tiny
    largest = [part.abs().amax((1, 2), keepdim=True).clamp(min=least) for part in (slopes, inputs)]
    scale = (largest[0] * largest[1]).flatten()
    return _squared_norms_of_scaled(slopes / largest[0], inputs / largest[1]) * scale.square()


def _squared_norms_of_scaled(slopes: Tensor, inputs: Tensor) -> Tensor:
    lengths = vector_norm(slopes, dim=2) * vector_norm(inputs, dim=2)  # (n, T)
    if lengths.shape[1] == 1:
        alone: Tensor = lengths[:, 0].square()
        return alone
    products = torch.bmm(slopes, slopes.transpose(1, 2)) * torch.bmm(inputs, inputs.transpose(1, 2))
    found: Tensor = products.sum((1, 2)).clamp(min=0) + _CANCELLED * lengths.sum(1).square()
    return found
