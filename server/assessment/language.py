"""How well a language model says the next token: along a text, and what it takes for what."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from privacy.dpsgd.example_loss import NO_LABEL
from server.assessment.facts import Confused, Language, Place, Share
from server.assessment.intervals import share
from server.evaluation import LARGEST_LOSS, TestData

_PLACES: Final = 10
_CONFUSED: Final = 12


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """A language model's figures, over all places that have a label.

    Attributes:
        n: how many those are.
        accuracy, loss: over them; the loss None where it is not finite.
        language: the details.
    """

    n: int
    accuracy: Share
    loss: float | None
    language: Language


def next_token(model: torch.nn.Module, data: TestData, names: Sequence[str], batch_size: int) -> NextToken | None:
    """Judge a language model; None where no place has a label.

    Args:
        model: gives logits (n, places, tokens).
        data: texts.
        names: of the tokens.
        batch_size: texts at once.
    """
    device = next(model.parameters()).device
    width = data.y.shape[1]
    right, there = np.zeros(width, dtype=np.int64), np.zeros(width, dtype=np.int64)
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    total = 0.0
    model.eval()
    with torch.inference_mode():
        for x, y in zip(torch.split(data.x, batch_size), torch.split(data.y, batch_size), strict=True):
            logits, known = model(x.to(device)).cpu(), y != NO_LABEL
            guess = logits.argmax(2).masked_fill(logits.isnan().any(2), -1)
            right += ((guess == y) & known).sum(0).numpy()
            there += known.sum(0).numpy()
            total += float(torch.nn.functional.cross_entropy(logits[known].double(), y[known], reduction="sum"))
            guessed = known & (guess >= 0)
            np.add.at(table, (y[guessed].numpy(), guess[guessed].numpy()), 1)
    n = int(there.sum())
    if n == 0:
        return None
    loss = total / n
    known_loss = loss if math.isfinite(loss) else None
    return NextToken(
        n=n,
        accuracy=share(int(right.sum()), n),
        loss=known_loss,
        language=Language(
            perplexity=None if known_loss is None else math.exp(min(known_loss, LARGEST_LOSS)),
            places=tuple(_places(right, there)),
            confused=tuple(_confused(table, names)),
        ),
    )


def _places(right: np.ndarray, there: np.ndarray) -> list[Place]:
    parts = np.array_split(np.arange(len(there)), min(_PLACES, len(there)))
    return [
        Place(first=int(part[0]) + 1, last=int(part[-1]) + 1, accuracy=share(int(right[part].sum()), int(of)))
        for part in parts
        if (of := there[part].sum()) > 0
    ]


def _confused(table: np.ndarray, names: Sequence[str]) -> list[Confused]:
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None, kind="stable")[::-1][:_CONFUSED]
    pairs = [divmod(int(index), len(names)) for index in order]
    return [Confused(token=names[a], taken_for=names[b], times=int(wrong[a, b])) for a, b in pairs if wrong[a, b]]
