"""Explaining one answer of a run's model: from the question to what each part of it added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from security.errors import UsageError, did_you_mean
from server.explain.attribution import Attribution, Network, attribute, of_embeddings
from server.export.inputs import Inputs
from server.export.served import served
from shared_models.cards import table_width
from shared_models.example_form import PADDING
from shared_models.features.encoders import ENCODERS
from shared_models.plan import Plan
from shared_models.tokens import SPECIAL

Form = Literal["table", "text", "image", "signal", "values"]
_ENOUGH: Final = 2  # steps, of a quadrature
_FORMS: Final[dict[int, Form]] = {2: "signal", 3: "image"}

CAVEAT: Final = (
    "This says what this network's answer rests on, measured against that baseline. It doesn't say whether the answer "
    "is right, what would happen if something were changed in the world, or why the training data is as it is; another "
    "baseline gives other figures."
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the question: a column, a token, one value.

    Attributes:
        name: of the column, the token itself, or the value's number.
        value: what the question has there, for people; empty for a token.
        score: what it added to the log-odds.
    """

    name: str
    value: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        form: of the question.
        target: name of the class that is explained; `guess` of the one that the network answers.
        attribution: the figures.
        parts: of a table, a text, or values in a row; of images and signals none.
        shown: an image or signal as it was given, (channels, height, width) or (channels, times); else None.
        baseline: what it is measured against, in words.
    """

    form: Form
    target: str
    guess: str
    attribution: Attribution
    parts: tuple[Part, ...]
    shown: npt.NDArray[np.float32] | None
    baseline: str

    def as_json(self) -> dict[str, Any]:
        """All figures, for programs."""
        found = self.attribution
        return {
            "form": self.form,
            "class": self.target,
            "guess": self.guess,
            "probability": found.probability,
            "log_odds": found.score,
            "baseline": {
                "what": self.baseline,
                "probability": found.base_probability,
                "log_odds": found.base_score,
            },
            "method": "integrated gradients",
            "steps": found.steps,
            "gap": found.gap if np.isfinite(found.gap) else None,
            "adds_up": found.adds_up,
            "attributions": found.values.tolist()
            if not self.parts
            else [{"name": part.name, "value": part.value, "score": part.score} for part in self.parts],
            "caveat": CAVEAT,
        }


def explain(
    plan: Plan,
    network: nn.Module,
    question: Any,
    *,
    against: Any = None,
    target: str | None = None,
    steps: int | None = None,
    where: str = "the question",
) -> Explanation:
    """Explain what a plan's trained network answers.

    Args:
        plan: resolved.
        network: trained, in evaluation mode.
        question: as `Inputs.encode` takes it.
        against: another one, to be the baseline; not of texts, whose places mean nothing to each other.
        target: a class; None: the network's answer.
        steps: of the integral; None: as `attribute`.
        where: what the question is called in errors.

    Raises:
        UsageError: the question isn't as the data's card says, there is no such class, the network's features can't be
            explained, or Captum isn't installed.
    """
    if plan.features is not None and plan.features.name not in ENCODERS:
        raise UsageError(
            f"features.name = '{plan.features.name}': can't be explained: its values are fixed matrices' sums over the "
            f"whole image, and no network; features that can: {', '.join(sorted(ENCODERS))}"
        )
    if steps is not None and steps < _ENOUGH:
        raise UsageError(f"--steps {steps}: at least {_ENOUGH}")
    inputs = Inputs.of(plan)
    number = _class(inputs, target)
    x = _encoded(inputs, question, where)
    base = None if against is None else _encoded(inputs, against, "--against")
    whole = served(plan, network)
    parts: tuple[Part, ...] = ()
    form: Form = "text"
    if inputs.kind == "text":
        if base is not None:
            raise UsageError("--against: not for texts, whose places mean nothing to each other")
        found, parts = _of_text(whole, inputs, question, x, number, steps)
        marks = inputs.text is not None and inputs.text.tokens == "wordpiece"
        baseline = "the same places filled with padding" + (", but for the marks of its ends" if marks else "")
    elif inputs.kind == "table":
        form, baseline = "table", "the middle of each number's public bounds, and none of a category's values"
        found = attribute(whole, x, torch.zeros_like(x) if base is None else base, target=number, steps=steps)
        parts = _columns(inputs, question, found.values)
    else:
        form, baseline = _FORMS.get(x.ndim, "values"), f"{inputs.card.mean:g}, the card's mean, everywhere"
        even = torch.full_like(x, inputs.card.mean)
        found = attribute(whole, x, even if base is None else base, target=number, steps=steps)
        parts = () if form != "values" else _numbered(x, found.values)
    if base is not None:
        baseline = "the other question that was given"
    guess = int(found.target) if number is None else _guess(whole, x)
    return Explanation(
        form=form,
        target=inputs.classes[found.target],
        guess=inputs.classes[guess],
        attribution=found,
        parts=parts,
        shown=x.numpy() if form in ("image", "signal") else None,
        baseline=baseline,
    )


def _encoded(inputs: Inputs, question: Any, where: str) -> Tensor:
    try:
        return torch.from_numpy(inputs.encode([question]))[0]
    except UsageError as error:
        raise UsageError(str(error).replace("inputs[0]", where, 1)) from error


def _class(inputs: Inputs, name: str | None) -> int | None:
    if name is None:
        return None
    if name not in inputs.classes:
        some = ", ".join(map(repr, inputs.classes[:20])) + (", ..." if len(inputs.classes) > 20 else "")
        raise UsageError(f"--target {name}: no such class; {did_you_mean(name, inputs.classes)}classes: {some}")
    return inputs.classes.index(name)


def _guess(network: nn.Module, x: Tensor) -> int:
    with torch.no_grad():
        return int(_last(network(x[None]), x)[0].argmax())


def _last(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of a language model what comes after the text's last token, (n, classes)."""
    if logits.ndim == 2:
        return logits
    return logits[:, int((tokens != PADDING).nonzero().max()) if bool((tokens != PADDING).any()) else 0]


def _of_text(
    network: nn.Module, inputs: Inputs, text: str, tokens: Tensor, target: int | None, steps: int | None
) -> tuple[Attribution, tuple[Part, ...]]:
    there = tokens != PADDING
    if not there.any():
        raise UsageError("the text holds no token: there is nothing to explain")
    kept = torch.zeros_like(there)
    if inputs.text is not None and inputs.text.tokens == "wordpiece":
        kept = torch.isin(tokens, torch.tensor(SPECIAL, dtype=tokens.dtype))
    with of_embeddings(network, tokens) as (function, embedded):
        last: Network = lambda states: _last(function(states), tokens)  # noqa: E731
        found = attribute(
            last,
            embedded(tokens),
            embedded(torch.where(kept, tokens, torch.full_like(tokens, PADDING))),
            target=target,
            steps=steps,
        )
    scores = found.values.sum(dim=1)
    pieces = inputs.pieces(text)
    return found, tuple(
        Part(name=piece, value="", score=float(score)) for piece, score in zip(pieces, scores, strict=False)
    )


def _columns(inputs: Inputs, question: dict[str, Any], values: Tensor) -> tuple[Part, ...]:
    """A column's places, added up."""
    parts, start = [], 0
    for name, column in inputs.card.columns.items():
        width = table_width({name: column})
        given = question[name]
        shown = "missing" if given is None or str(given).strip() in inputs.card.missing else str(given).strip()
        parts.append(Part(name=name, value=shown, score=float(values[start : start + width].sum())))
        start += width
    return tuple(parts)


def _numbered(x: Tensor, values: Tensor) -> tuple[Part, ...]:
    flat: Sequence[tuple[float, float]] = list(zip(x.flatten().tolist(), values.flatten().tolist(), strict=True))
    return tuple(Part(name=str(place), value=f"{value:g}", score=score) for place, (value, score) in enumerate(flat))
