"""What a tracker may be told: numbers that metrics.jsonl and summary.json print, and the plan's own settings.

A tracker may stand anywhere, so what it gets is chosen by name, key by key: who took part, who failed, what a single
client spent, where files lie and what the machine is called are not among them. A field that a later version adds to a
round or a summary reaches no tracker until it is named here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from shared_models.plan import Plan

Figures = dict[str, float]
Words = dict[str, str]

_METRICS: Final = (
    "accuracy",
    "accuracy_high",
    "accuracy_low",
    "auc",
    "balanced_accuracy",
    "f1",
    "loss",
    "perplexity",
    "precision",
    "recall",
)
_OF_ROUND: Final = (
    "seconds",
    "cohort",
    "updates",
    "train_loss",
    "epsilon_max",
    "bytes_up",
    "bytes_down",
    "examples",
    "clipping_norm",
    *(f"evaluation.{name}" for name in _METRICS),
    "secure_sum.attempts",
    "secure_sum.charged",
    "secure_sum.survivors",
)
_OF_SUMMARY: Final = (
    "rounds",
    *(f"final.{name}" for name in _METRICS),
    "best.round",
    "best.value",
    "seconds.startup",
    "seconds.first_round",
    "seconds.rounds",
    "seconds.total",
    "bytes.up",
    "bytes.down",
    "privacy.delta",
    "privacy.epsilon_max",
    "privacy.epsilon_planned",
    "privacy.noise_multiplier",
    "privacy.clipping_norm",
    "privacy.sample_rate",
    "privacy.steps_a_round",
)
_WORDS_OF_SUMMARY: Final = (
    "stopped",
    "setting",
    "plan_digest",
    "privacy.unit",
    "privacy.trust",
    "privacy.relation",
    "privacy.accountant",
    "privacy.noise",
    "privacy.selection",
)
_OF_PLAN: Final = (
    "name",
    "seed",
    "data.name",
    "data.test_fraction",
    "data.partition.kind",
    "data.partition.clients",
    "data.partition.alpha",
    "features.name",
    "model.name",
    "model.options.*",
    "training.*",
    "training.schedule.*",
    "privacy.unit",
    "privacy.trust",
    "privacy.epsilon",
    "privacy.noise_multiplier",
    "privacy.calibrated_from",
    "privacy.delta",
    "privacy.clipping_norm",
    "privacy.clipping",
    "privacy.noise",
    "privacy.selection",
    "privacy.adaptive.*",
    "privacy.correlated.*",
    "federation.*",
    "federation.cohort.*",
    "federation.strategy_options.*",
    "evaluation.*",
)


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Which run it is.

    Attributes:
        run: what it is called: its folder's last name, or what its repetition or sweep calls it.
        name: of the plan.
        plan_digest: of the resolved plan; the run's identity together with `run`.
        setting: "simulation" or "deployment".
        done: rounds that were played before.
    """

    run: str
    name: str
    plan_digest: str
    setting: str
    done: int


class Tracker(Protocol):
    """One run as a library of trackers sees it. Methods are called in order, from one thread; any may raise."""

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        """The run begins, or goes on; then earlier rounds follow once more."""
        ...

    def round(self, number: int, figures: Figures) -> None:
        """A round is over."""
        ...

    def end(self, figures: Figures, words: Words) -> None:
        """The run is over; empty where it was cut off and may be gone on with."""
        ...


def of_plan(plan: Plan) -> dict[str, float | str]:
    """The plan's settings by key; what is not set is left out. No path and no client's id is among them."""
    found: dict[str, float | str] = {}
    for key, value in _chosen(plan.model_dump(mode="json"), _OF_PLAN):
        if isinstance(value, (bool, list)):
            found[key] = str(value).lower() if isinstance(value, bool) else ", ".join(map(str, value))
        elif isinstance(value, (int, float, str)):
            found[key] = value
    return found


def of_round(line: Mapping[str, Any]) -> Figures:
    """Numbers of one line of metrics.jsonl."""
    return _numbers(line, _OF_ROUND)


def of_summary(summary: Mapping[str, Any]) -> tuple[Figures, Words]:
    """Numbers and words of summary.json; the codes of what ends a claim stand beside its epsilon (principle 3)."""
    words = {key: str(value) for key, value in _chosen(summary, _WORDS_OF_SUMMARY) if isinstance(value, str)}
    remarks = summary["privacy"].get("withdrawn", ())
    codes = [remark["code"] for remark in remarks if isinstance(remark, Mapping)]
    if codes:
        words["privacy.withdrawn"] = ", ".join(codes)
    return _numbers(summary, _OF_SUMMARY), words


def _numbers(document: Mapping[str, Any], keys: tuple[str, ...]) -> Figures:
    return {
        key: float(value)
        for key, value in _chosen(document, keys)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _chosen(document: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """What stands under those keys; a last part `*` stands for each key of a table, not for tables in it."""
    for key in keys:
        *tables, last = key.split(".")
        table: Any = document
        for name in tables:
            table = table.get(name) if isinstance(table, Mapping) else None
        if not isinstance(table, Mapping):
            continue
        for name in table if last == "*" else (last,):
            if table.get(name) is not None:
                yield ".".join((*tables, name)), table[name]
