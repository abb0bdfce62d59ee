"""What an exported model is asked with: the public facts that a service checks questions by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from security.errors import UsageError
from shared_models.cards import DataCard, card_for
from shared_models.plan import Plan
from shared_models.plan_data import Column, NumericColumn, TextPlan
from shared_models.table_encoding import encode_table, unreadable
from shared_models.tokens import pieces_of, tokens_of

Kind = Literal["values", "table", "text"]
_MOST_TEXT = 1 << 16  # characters of one text
_SURROGATE = "holds a character that is none (a lone surrogate)"  # JSON can spell it


@dataclass(frozen=True)
class Inputs:
    """How a question becomes what the exported model takes.

    Attributes:
        kind: of a question: nested lists of numbers, a record of columns, or a text.
        shape: of one example as the exported model takes it.
        classes: names, in the order of its outputs.
        card: the data's.
        text: how a text becomes tokens.
    """

    kind: Kind
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    card: DataCard
    text: TextPlan | None

    @classmethod
    def of(cls, plan: Plan) -> Inputs:
        """Those of a plan's data."""
        card = card_for(plan.data)
        kind: Kind = "text" if card.vocabulary is not None else "table" if card.columns else "values"
        return cls(kind, card.input_shape, card.classes, card, plan.data.texts if kind == "text" else None)

    def encode(self, questions: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Examples (n, *shape) of questions, each checked by the card.

        Values are as the data has them before it is normalised: pixels as bytes are given from 0 to 1, tokens and
        tables are made here.

        Raises:
            UsageError: one isn't as the card says; the text names its number and what is wrong.
        """
        if self.kind == "text":
            return self._texts(questions)
        if self.kind == "table":
            return self._records(questions)
        return np.stack([self._values(number, one) for number, one in enumerate(questions)]).astype(np.float32)

    def pieces(self, text: str) -> tuple[str, ...]:
        """What each token of a text that was encoded stands for."""
        assert self.text is not None
        return pieces_of(self._read(text), self.text)

    def as_json(self) -> dict[str, Any]:
        """For `inputs.json` and people."""
        found: dict[str, Any] = {"kind": self.kind, "shape": list(self.shape), "classes": list(self.classes)}
        if self.kind == "table":
            found["columns"] = {name: column.model_dump(mode="json") for name, column in self.card.columns.items()}
            found["missing"] = list(self.card.missing)
        if self.text is not None:
            found["text"] = self.text.model_dump(mode="json")
        return found

    def _values(self, number: int, given: Any) -> npt.NDArray[np.float32]:
        try:
            found = np.asarray(given)
        except ValueError:  # ragged
            found = np.empty(0, dtype=object)
        if found.dtype.kind not in "iuf":  # texts, truth values, numbers too large for any
            raise UsageError(f"inputs[{number}]: should be numbers in nested lists of shape {self.shape}")
        if found.shape != self.shape:
            raise UsageError(f"inputs[{number}]: has shape {found.shape}, should have {self.shape}")
        with np.errstate(over="ignore"):
            values = found.astype(np.float32)
        if not np.isfinite(values).all():
            raise UsageError(f"inputs[{number}]: holds a number that is not finite, or too large")
        return values

    def _texts(self, questions: Sequence[Any]) -> npt.NDArray[np.float32]:
        assert self.text is not None
        for number, given in enumerate(questions):
            if not isinstance(given, str):
                raise UsageError(f"inputs[{number}]: should be a text")
            if len(given) > _MOST_TEXT:
                raise UsageError(f"inputs[{number}]: is longer than {_MOST_TEXT} characters")
            if _has_surrogate(given):
                raise UsageError(f"inputs[{number}]: {_SURROGATE}")
        return tokens_of([self._read(one) for one in questions], self.text).astype(np.float32)

    def _read(self, text: str) -> str:
        """What comes next is asked of a language model: of a long text its end counts."""
        return text[-self.shape[0] :] if self.card.at_each_place else text

    def _records(self, questions: Sequence[Any]) -> npt.NDArray[np.float32]:
        import pandas as pd

        for number, given in enumerate(questions):
            if not isinstance(given, dict):
                raise UsageError(f"inputs[{number}]: should be an object with a value for each column")
            lacking = [name for name in self.card.columns if name not in given]
            if lacking or len(given) > len(self.card.columns):
                what = f"lacks {', '.join(lacking)}" if lacking else "has columns that aren't known"
                raise UsageError(f"inputs[{number}]: {what}; columns: {', '.join(self.card.columns)}")
            for name, value in given.items():
                if isinstance(value, list | dict):
                    raise UsageError(f"inputs[{number}].{name}: should be a text, a number or null")
                if isinstance(value, str) and _has_surrogate(value):
                    raise UsageError(f"inputs[{number}].{name}: {_SURROGATE}")
        blank = self.card.missing[0] if self.card.missing else ""
        rows = [
            {name: blank if one[name] is None else str(one[name]).strip() for name in self.card.columns}
            for one in questions
        ]
        table = pd.DataFrame(rows, columns=list(self.card.columns), dtype=str)
        for name, column in self.card.columns.items():
            self._check(name, column, table[name])
        return encode_table(table, self.card.columns, self.card.missing)

    def _check(self, name: str, column: Column, texts: Any) -> None:
        if isinstance(column, NumericColumn):
            bad = np.flatnonzero(unreadable(texts, self.card.missing))
            if len(bad):
                raise UsageError(f"inputs[{bad[0]}].{name}: should be a number, or null where it is missing")


def _has_surrogate(text: str) -> bool:
    return not text.isprintable() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
