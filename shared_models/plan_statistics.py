"""The table [statistics] of a plan: no model is trained, each client releases noisy histograms of its columns once.

A record is counted in one bin of each column, and that is all that leaves: means, variances and quantiles are made of
the summed counts (`shared_models.summary_statistics`), which costs nothing more. Which bins there are follows from the
plan and the card's public bounds alone (`shared_models.histograms`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

from pydantic import Field, model_validator

from privacy.mechanisms import NoisyHistograms
from shared_models.plan_section import Count, Section

if TYPE_CHECKING:
    from shared_models.plan import Plan

MOST_BINS: Final = 4096
"""Of one column."""

# What a plan with [statistics] says where it says nothing.
_FILLED: Final[tuple[tuple[str, str, object], ...]] = (
    ("federation", "rounds", 1),
    ("evaluation", "where", "none"),
    ("training", "sample_rate", 1.0),
)


class StatisticsPlan(Section):
    """Noisy histograms in place of a model: what means, quantiles and class counts are made of."""

    columns: tuple[str, ...] | None = Field(
        None, strict=False, min_length=1, description="Columns that are counted; default: the card's, and the classes."
    )
    bins: Annotated[int, Field(ge=1, le=MOST_BINS)] = Field(
        32, description="Equal parts that the public bounds of a number are cut into."
    )
    edges: dict[str, tuple[float, ...]] = Field(
        default_factory=dict,
        description="Of numbers that lie unevenly: where to cut between the bounds, in place of equal parts.",
    )
    most_records: Count = Field(
        1_000_000,
        description="With trust = 'distributed': public bound on a client's records; larger counts are clamped to it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, raw: Any) -> Any:
        """TOML's lists, which a strict table wouldn't take inside of another."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("edges"), Mapping):
            return raw
        edges = {key: tuple(value) if isinstance(value, list) else value for key, value in raw["edges"].items()}
        return {**raw, "edges": edges}

    @model_validator(mode="after")
    def _cuts(self) -> Self:
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns names one twice, which would count each record twice; name each once")
        for name, cuts in self.edges.items():
            if not 1 <= len(cuts) < MOST_BINS or any(a >= b for a, b in pairwise(cuts)):
                raise ValueError(f"edges.{name} should be 1 to {MOST_BINS - 1} rising numbers between the bounds")
        return self


def with_defaults(raw: Any) -> Any:
    """The document of a plan with what [statistics] makes of the other tables' defaults."""
    if not isinstance(raw, Mapping) or raw.get("statistics") is None:
        return raw
    filled = dict(raw)
    for section, key, value in _FILLED:
        table = filled.get(section, {})
        if isinstance(table, Mapping):
            filled[section] = {key: value, **table}
    return filled


def check_statistics(plan: Plan) -> None:
    """Refuse what a plan that trains nothing can't mean.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    if plan.statistics is None:
        return
    privacy = plan.privacy
    if privacy.trust not in ("local", "distributed") or privacy.unit != "example":
        raise ValueError(
            f"privacy.unit = '{privacy.unit}' with privacy.trust = '{privacy.trust}': statistics are private and "
            "count records; with [statistics] allowed: unit = 'example', trust = 'local' or 'distributed' (people: "
            "data.person_column)"
        )
    for path, given, allowed in (
        *((f"{section}.{key}", getattr(getattr(plan, section), key), value) for section, key, value in _FILLED),
        ("federation.strategy", plan.federation.strategy, "fedavg"),
        ("federation.strategy_options", plan.federation.strategy_options, {}),
        ("federation.wire", plan.federation.wire, "float32"),
        ("privacy.clipping_norm", privacy.clipping_norm, 1.0),
        ("privacy.clipping", privacy.clipping, "flat"),
        ("privacy.unprotected", privacy.unprotected, ()),
        ("privacy.adaptive", privacy.adaptive, None),
        ("federation.model_average", plan.federation.model_average, None),
        ("training.augment", plan.training.augment, None),
        ("training.gradient_checkpointing", plan.training.gradient_checkpointing, False),
        ("features", plan.features, None),
        ("personal", plan.personal, None),
        ("federation.asynchronous", plan.federation.asynchronous, None),
        ("data.normalisation", plan.data.normalisation, None),
    ):
        if given != allowed:
            remedy = f"allowed: {allowed!r}" if isinstance(allowed, str | int | float) else "remove it"
            raise ValueError(f"{path} means nothing beside [statistics], where nothing is trained; {remedy}")
    if plan.training.epochs is not None:
        raise ValueError("training.epochs means nothing beside [statistics], where nothing is trained; remove it")


def statistics_of(plan: Plan) -> StatisticsPlan:
    """The plan's table.

    Raises:
        ValueError: it has none.
    """
    if plan.statistics is None:
        raise ValueError("the plan has no [statistics]")
    return plan.statistics


def record_norm(plan: Plan) -> float:
    """L2 distance by which one record moves all counts together: one count in each column.

    Raises:
        ValueError: the plan is not resolved, so how many columns are counted is unknown.
    """
    columns = statistics_of(plan).columns
    if columns is None:
        raise ValueError("the plan is not resolved: which columns are counted is unknown")
    return math.sqrt(len(columns))


def statistics_release(plan: Plan) -> NoisyHistograms:
    """What a client releases under local trust.

    Raises:
        ValueError: the plan is not resolved.
    """
    columns, noise = statistics_of(plan).columns, plan.privacy.noise_multiplier
    if columns is None or noise is None:
        raise ValueError("the plan is not resolved: its columns or its noise multiplier are unknown")
    return NoisyHistograms(noise_multiplier=noise, columns=len(columns), records_per_unit=plan.records_per_unit)


def count_noise(plan: Plan) -> float:
    """Standard deviation of the noise that one client's own count carries, in counts; of a resolved plan.

    Under distributed trust that is its share; the sum's is that of all clients in it.
    """
    if plan.privacy.trust == "distributed":
        grid = plan.sum_grid()
        return float(grid.noise_share * grid.step * record_norm(plan))
    return statistics_release(plan).noise
