"""Which words a client's texts hold, from the gradient of the embedding: only rows of tokens that occur are moved.

(Melis et al. 2019, "Exploiting Unintended Feature Leakage in Collaborative Learning", arXiv 1805.04049, section 4.1.)
Where noise moves every row, the attacker looks for rows that were moved further than noise moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from security.errors import UsageError
from shared_models.example_form import PADDING
from shared_models.parameters import Parameters
from shared_models.plan import Plan
from shared_models.registry import build_for

_Floats = npt.NDArray[np.float64]

_ROUNDING: Final = 2.0**-22  # of a float32 that is moved, in parts of what it was


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """How many different tokens were found, of one batch or of several added up.

    Attributes:
        found: tokens that the attacker names.
        right: those of them that were there.
        there: tokens that were there.
    """

    found: int
    right: int
    there: int

    @property
    def precision(self) -> float | None:
        """Part of what was named that was there; None where nothing was named."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """Part of what was there that was named; None where nothing was there."""
        return self.right / self.there if self.there else None

    def __add__(self, other: TokenScores) -> TokenScores:
        return TokenScores(
            found=self.found + other.found, right=self.right + other.right, there=self.there + other.there
        )


def tokens_seen(plan: Plan, start: Parameters, movement: Parameters) -> frozenset[int]:
    """Tokens that occur in the texts that a movement was computed from.

    Weight decay shortens all rows by the same part of what they were; that is put back first. Without noise these are
    the rows that were moved at all. Else most rows, those of tokens that don't occur, are noise of one size in each
    value; the median row tells that size, and a row that is longer than one of noise would be at a chance of one over
    the number of tokens is taken for a find: so about one find is false.

    Raises:
        UsageError: the plan's network has no embedding that learns.
    """
    from scipy.stats import chi2

    name = embedding_of(plan)
    rows = _undecayed(movement[name].astype(np.float64), start[name].astype(np.float64))
    lengths: npt.NDArray[np.float64] = (rows**2).sum(axis=1)
    tokens, width = rows.shape
    noise = float(np.median(lengths)) / float(chi2.median(width))
    moved = lengths > noise * float(chi2.isf(1 / tokens, width))
    return frozenset(np.flatnonzero(moved).tolist()) - {PADDING}


def _undecayed(rows: _Floats, start: _Floats) -> _Floats:
    """Movements of rows without what all have in common: a multiple of what each was before."""
    sizes = (start**2).sum(axis=1)
    there = sizes > 0
    decay = float(np.median((rows * start).sum(axis=1)[there] / sizes[there])) if there.any() else 0.0
    if decay == 0:
        return rows
    found = rows - decay * start
    found[np.abs(found) <= _ROUNDING * np.abs(start)] = 0
    return found


def tokens_in(x: Tensor) -> frozenset[int]:
    """Different tokens of texts (n, places), without padding."""
    return frozenset(torch.unique(x.long()).tolist()) - {PADDING}


def most_frequent(x: Tensor, count: int) -> frozenset[int]:
    """The tokens that occur in most of some texts (n, places): what a server would guess without looking."""
    texts = [tokens_in(text) for text in x]
    occurs = np.bincount([token for text in texts for token in text], minlength=1)
    order = np.argsort(-occurs, kind="stable")
    return frozenset(order[:count].tolist()) - {PADDING}


def token_scores(found: frozenset[int], there: frozenset[int]) -> TokenScores:
    """Of one batch."""
    return TokenScores(found=len(found), right=len(found & there), there=len(there))


def embedding_of(plan: Plan) -> str:
    """Name of the trained table with a row for each token.

    Raises:
        UsageError: there is none.
    """
    model = build_for(plan)
    for name, module in model.named_modules():  # the first: a table of places comes after it
        if isinstance(module, nn.Embedding) and module.weight.requires_grad:
            return f"{name}.weight"
    raise UsageError(f"model.name = '{plan.model.name}': has no embedding that learns, whose rows could tell of tokens")
