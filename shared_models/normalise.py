"""From released statistics to the constants that a training plan uses: means, scales and class weights.

They were charged by the plan that released them, which the plan that uses them names by its digest; the ledgers of the
sites, which outlive plans, add both up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan import Plan
from shared_models.plan_data import NormalisationPlan, NumericColumn, Scale
from shared_models.schema_card import IntegerColumn, NumberColumn, SchemaCard
from shared_models.summary_statistics import ColumnSummary, class_weights

_SURE: Final = 2.0
"""Deviations of its own noise that a scale must have: what is divided by must not be noise."""


@dataclass(frozen=True, kw_only=True)
class Constants:
    """What released statistics give a plan.

    Attributes:
        statistics: digest of the plan that released them.
        scales: of numbers.
        drowned: numbers of which noise leaves too little.
        label: the column of the classes, if it was counted.
    """

    statistics: str
    scales: Mapping[str, Scale]
    drowned: tuple[str, ...]
    label: ColumnSummary | None
    noise: float

    def weights(self, classes: tuple[str, ...]) -> tuple[float, ...]:
        """Weights of these classes.

        Raises:
            UsageError: they were not counted, are others, or noise drowns their counts.
        """
        if self.label is None or self.label.names != classes:
            raise UsageError("the statistics counted no such classes; release them with the classes among the columns")
        try:
            return class_weights(self.label, self.noise)
        except ValueError as error:
            raise UsageError(f"class weights: {error}; release statistics with more epsilon or more clients") from error


def constants_of(statistics: Mapping[str, Any]) -> Constants:
    """What `statistics.json` gives.

    Raises:
        UsageError: it isn't one.
    """
    try:
        numbers = {one["column"]: one["number"] for one in statistics["columns"] if one["kind"] == "number"}
        scales = {
            name: Scale(mean=_short(number["mean"]), scale=_short(number["deviation"]))
            for name, number in numbers.items()
            if number is not None and number["deviation"] > _SURE * number["deviation_noise"]
        }
        labels = [_column(one) for one in statistics["columns"] if one["kind"] == "classes"]
        return Constants(
            statistics=str(statistics["plan"]),
            scales=scales,
            drowned=tuple(name for name in numbers if name not in scales),
            label=labels[0] if labels else None,
            noise=float(statistics["noise"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"these are no statistics of a run ({type(error).__name__})") from error


def normalised_plan(plan: Plan, found: Constants, *, weigh_classes: bool) -> Plan:
    """A plan whose numbers are normalised by what was released.

    Raises:
        UsageError: none of the numbers is one of the plan's, or the classes are others.
    """
    card = card_for(plan.data)
    numbers = [name for name, column in card.columns.items() if isinstance(column, NumericColumn)]
    scales = {name: found.scales[name] for name in numbers if name in found.scales}
    if not scales and not weigh_classes:
        raise UsageError(
            f"the statistics normalise no number of the plan's data ({', '.join(numbers) or 'it has none'})"
        )
    normalisation = NormalisationPlan(statistics=found.statistics, columns=scales) if scales else None
    changes: dict[str, Any] = {"data": plan.data.model_copy(update={"normalisation": normalisation})}
    if weigh_classes:
        weights = found.weights(card.classes)
        changes["training"] = plan.training.model_copy(update={"class_weights": weights})
    return Plan.model_validate(plan.model_copy(update=changes).model_dump())


def normalised_schema(schema: SchemaCard, found: Constants) -> SchemaCard:
    """A schema whose numbers hold the means and scales that were released.

    Raises:
        UsageError: none of them is one of the schema's.
    """
    columns = dict(schema.columns)
    for name, scale in found.scales.items():
        column = columns.get(name)
        if isinstance(column, NumberColumn | IntegerColumn):
            columns[name] = column.model_copy(update={"mean": scale.mean, "scale": scale.scale})
    if columns == schema.columns:
        raise UsageError("the statistics normalise no number of the schema")
    return schema.model_copy(update={"columns": columns, "statistics": found.statistics})


def _column(one: Mapping[str, Any]) -> ColumnSummary:
    lists = {name: tuple(one[name]) for name in ("names", "edges", "counts")}
    return ColumnSummary(**{**one, **lists})


def _short(value: float) -> float:
    """Six digits: more would be noise, and longer to read."""
    return float(f"{value:.6g}")
