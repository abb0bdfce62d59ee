"""What an evaluation says: frozen facts, written as evaluation.json (schema: docs/schemas/evaluation.schema.json)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Literal

from privacy.report.plain import from_plain, to_plain

CONFIDENCE: Final = 0.95
LEAST: Final = 20
"""Examples below which a rate is not given: so few say nothing, and of a person too much."""

Source = Literal["server", "clients", "file", "released"]
Measure = Literal["accuracy", "positive_rate", "true_positive_rate", "false_positive_rate", "equalised_odds"]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A part of some examples, with its 95 % interval.

    Attributes:
        value: in 0..1.
        low, high: ends of the interval.
        of: examples it is a part of; with noise an estimate.
    """

    value: float
    low: float
    high: float
    of: int


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class.

    Attributes:
        name: of the card.
        support: examples of it.
        guessed: examples that were taken for it.
        precision, recall: None without a guess, or without an example; with noise also where it drowns them.
        f1: None where one of them is.
    """

    name: str
    support: int
    guessed: int
    precision: Share | None
    recall: Share | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Average:
    """Means over the classes that have examples; None where that is not known.

    Attributes:
        precision: a class that nothing was taken for counts as 0.
        recall: of all of them.
        f1: where there is no precision, 0.
    """

    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Examples whose guess was about equally sure.

    Attributes:
        low, high: probabilities of the guess, low < p <= high.
        n: examples.
        confidence: their mean probability; None without any.
        accuracy: the part that was right; None below `LEAST` examples.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: Share | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Whether a probability means what it says.

    Attributes:
        error: expected calibration error: mean over examples of |confidence - accuracy| of their bin.
        brier: mean over examples of the squared distance between the probabilities and the true class, over all
            classes; in 0..2.
        bins: of equal width, by the probability of the guess.
    """

    error: float
    brier: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """One group of examples, or one client's.

    Attributes:
        name: value of the column, or the client's id.
        n: examples.
        accuracy: part that was right.
        positive_rate: part that was taken for the positive class.
        true_positive_rate, false_positive_rate: the same of those that are, and are not, of it.

    A rate over fewer than `LEAST` examples is None, and so are the last three where no class is the positive one.
    """

    name: str
    n: int
    accuracy: Share | None
    positive_rate: Share | None
    true_positive_rate: Share | None
    false_positive_rate: Share | None


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The largest difference between two groups.

    Attributes:
        measure: of what.
        value: highest less lowest.
        low, high: simultaneous interval: it allows for the two groups having been picked among `groups`.
        highest, lowest: the groups.
        groups: how many have enough examples to be compared.
    """

    measure: Measure
    value: float
    low: float
    high: float
    highest: str
    lowest: str
    groups: int


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Groups side by side.

    Attributes:
        column: that tells them apart; "client" for the federation's own.
        positive: the class that rates are about; None where there is none.
        rows: the groups, by name.
        gaps: those that at least two groups have enough examples for.
        others: examples that belong to none of them.
    """

    column: str
    positive: str | None
    rows: tuple[GroupRow, ...]
    gaps: tuple[Gap, ...]
    others: int


@dataclass(frozen=True, kw_only=True)
class Place:
    """Part of a text.

    Attributes:
        first, last: its places, counted from 1.
        accuracy: part of its tokens that was guessed.
    """

    first: int
    last: int
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class Confused:
    """A mistake.

    Attributes:
        token: the right one.
        taken_for: the guess.
        times: how often.
    """

    token: str
    taken_for: str
    times: int


@dataclass(frozen=True, kw_only=True)
class Language:
    """How well a language model says the next token.

    Attributes:
        perplexity: exp of the mean cross-entropy; None where that is not finite.
        places: accuracy along a text.
        confused: the commonest mistakes.
    """

    perplexity: float | None
    places: tuple[Place, ...]
    confused: tuple[Confused, ...]


@dataclass(frozen=True, kw_only=True)
class Released:
    """Where figures are made of what clients released.

    Attributes:
        round: after which.
        clients: how many answered.
        noise: standard deviation of the noise in each count of each client; 0 for exact counts.
    """

    round: int
    clients: int
    noise: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model judged in detail.

    Attributes:
        name, plan_digest: of the run.
        model: SHA-256 of the model's file; None where clients judged it.
        best: whether it is the model with the best evaluation, not the last.
        setting: simulation or deployment.
        source: on whose records: the server's test part, what clients hold out, a file of one's own, or counts that
            clients released.
        protected: whether the figures are a private release; if not, they say what the records say.
        n: examples (tokens of a language model); of noisy counts an estimate.
        accuracy: part that was right; None where noise drowns it.
        loss: mean cross-entropy in nats; None where it is not known or not finite.
        balanced_accuracy: mean recall over the classes with examples.
        auc: None where it is not defined or not known.
        classes: by class; empty for a language model.
        macro, weighted: averages, over classes and by their support.
        confusion: examples by true class (row) and guess; None for a language model or more than 200 classes.
        calibration, groups, clients, language, released: None where it makes no sense or was not asked for.
        remarks: what a reader should know, one sentence each.
    """

    name: str
    plan_digest: str
    model: str | None
    best: bool
    setting: Literal["simulation", "deployment"]
    source: Source
    protected: bool
    n: int
    accuracy: Share | None
    loss: float | None
    balanced_accuracy: float | None
    auc: float | None
    classes: tuple[ClassRow, ...]
    macro: Average
    weighted: Average
    confusion: tuple[tuple[int, ...], ...] | None
    calibration: Calibration | None
    groups: Groups | None
    clients: Groups | None
    language: Language | None
    released: Released | None
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, data: object) -> Evaluation:
        """The inverse of `to_json`. Raises ValueError if `data` has another form."""
        return from_plain(cls, data)


def json_text(facts: Evaluation) -> str:
    """evaluation.json."""
    return json.dumps(facts.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
