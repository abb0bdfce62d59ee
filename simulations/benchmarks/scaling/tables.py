"""Figures, and what follows from them, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from simulations.benchmarks.scaling.cases import Case, Measured
from simulations.benchmarks.scaling.cost_model import CostModel, Load, fit

FORECAST: Final = (10_000, 1_000_000)
"""Numbers of clients that costs are computed for."""

_COHORT, _ROUNDS = 1000, 100

Kind = tuple[str, bool]
"""Engine, and whether under privacy."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the model makes of a federation; computed, not measured.

    Attributes:
        kind: engine and privacy.
        clients: how many there are.
        everybody: seconds of a round with all of them.
        some: seconds of a run of `_ROUNDS` rounds with `_COHORT` of them, from its start.
    """

    kind: Kind
    clients: int
    everybody: float
    some: float


def models(found: Sequence[Measured]) -> dict[Kind, CostModel]:
    """A model for each kind of run that was measured in enough ways."""
    observations: dict[Kind, list[tuple[Load, float]]] = {}
    for one in found:
        observations.setdefault((one.case.engine, one.case.private), []).extend(one.observations())
    fitted = {}
    for kind, some in observations.items():
        try:
            fitted[kind] = fit(some)
        except ValueError:
            continue
    return fitted


def forecasts(fitted: Mapping[Kind, CostModel]) -> list[Forecast]:
    """Of each model, for each number of `FORECAST`."""
    found = []
    for kind, model in fitted.items():
        for clients in FORECAST:
            cohort = min(_COHORT, clients)
            each = Case(engine=kind[0], clients=clients, cohort=1).round_bytes
            run = Load(
                starts=1,
                clients=clients,
                rounds=_ROUNDS,
                client_rounds=_ROUNDS * cohort,
                bytes=_ROUNDS * cohort * each,
            )
            everybody = Load(rounds=1, client_rounds=clients, bytes=clients * each)
            found.append(
                Forecast(kind=kind, clients=clients, everybody=model.seconds(everybody), some=model.seconds(run))
            )
    return found


def tables(found: Sequence[Measured], fitted: Mapping[Kind, CostModel]) -> Iterator[Table]:
    """Measured figures, the models, and what they say of other sizes."""
    yield _measured(found)
    if fitted:
        yield _models(fitted)
        yield _forecasts(forecasts(fitted))


def _measured(found: Sequence[Measured]) -> Table:
    table = _table("Measured", "engine", "privacy")
    for name in (
        "clients",
        "cohort",
        "parameters",
        "warm round, s",
        "ms a client",
        "first round after, s",
        "after the last, s",
        "driver, MB",
        "all, MB",
    ):
        table.add_column(name, justify="right")
    for one in found:
        table.add_row(
            *_kind((one.case.engine, one.case.private)),
            f"{one.case.clients:,}",
            f"{one.case.cohort:,}",
            f"{one.case.parameters:,}",
            _shown(one.round, ".3f"),
            _shown(None if one.client is None else 1000 * one.client, ".2f"),
            _shown(one.figures.first, ".1f"),
            _shown(one.figures.end, ".1f"),
            _shown(one.figures.alone, ",.0f"),
            _shown(one.figures.peak, ",.0f"),
        )
    return table


def _models(fitted: Mapping[Kind, CostModel]) -> Table:
    table = _table("Cost model, fitted", "engine", "privacy")
    for name in ("start, s", "a client there, ms", "a round, ms", "a client in it, ms", "a MB, ms", "largest error"):
        table.add_column(name, justify="right")
    for kind, model in fitted.items():
        table.add_row(
            *_kind(kind),
            f"{model.start:.1f}",
            f"{1e3 * model.client:.2f}",
            f"{1e3 * model.round:.0f}",
            f"{1e3 * model.client_round:.2f}",
            f"{1e9 * model.byte:.2f}",
            f"{model.error:.0%}",
        )
    return table


def _forecasts(some: Sequence[Forecast]) -> Table:
    table = _table("Extrapolated by the model, not measured", "engine", "privacy")
    for name in ("clients", "a round with all, s", f"{_ROUNDS} rounds of {_COHORT:,}, start included, s"):
        table.add_column(name, justify="right")
    for one in some:
        table.add_row(*_kind(one.kind), f"{one.clients:,}", f"{one.everybody:,.1f}", f"{one.some:,.0f}")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name)
    return table


def _kind(kind: Kind) -> tuple[str, str]:
    return kind[0], "DP-SGD" if kind[1] else "none"


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
