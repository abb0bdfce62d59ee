"""Several copies of one record in a batch: their gradients become one, before it is clipped.

Augmentation multiplicity (De et al. 2022, arXiv 2204.13650, section 3.2): the gradient of a record is the mean of those
of its changed copies. It is clipped as any record's is, so a record still moves the sum by the clipping norm at most.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from privacy.dpsgd.factors import Factors


def join_copies(parameters: Iterable[Tensor], copies: int) -> None:
    """Add up the gradients of each record's copies, where the last backward pass has left them.

    For their mean the loss is divided by the number of copies beforehand.

    Args:
        parameters: that are trained; what the pass has left for each copy is replaced by what it left for each record.
        copies: of each record, beside each other in the batch.

    Raises:
        RuntimeError: the batch wasn't whole records.
    """
    for parameter in parameters:
        gradients = getattr(parameter, "grad_sample", None)
        if copies == 1 or not isinstance(gradients, Tensor | Factors):
            continue
        if len(gradients) % copies:
            raise RuntimeError(f"{len(gradients)} gradients are no whole number of records of {copies} copies each")
        parameter.grad_sample = _joined(gradients, copies)  # type: ignore[attr-defined]


def _joined(gradients: Tensor | Factors, copies: int) -> Tensor | Factors:
    records = len(gradients) // copies
    if isinstance(gradients, Factors):  # a copy is so many places more
        slopes, inputs = gradients.slopes, gradients.inputs
        return Factors(slopes.reshape(records, -1, slopes.shape[2]), inputs.reshape(records, -1, inputs.shape[2]))
    return gradients.reshape(records, copies, *gradients.shape[1:]).sum(1)
