"""The table [privacy.correlated] of a plan: noise that partly cancels over the rounds (Choquette-Choo et al. 2023).

It belongs to a trusted server (`privacy.trust = "central"`) with cohorts of a fixed size. The whole run is one release
(`privacy.mechanisms.BandedFactorisation`), charged before its first round; nothing is gained by chance, so who takes
part may be known. What the price rests on instead is a schema: a client that was asked in one round is asked again
`separation` rounds later at the earliest. The matrix follows from public numbers of the plan, in whole numbers: every
machine computes the same one, and a resolved plan names it by its digest.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from privacy.mechanisms import BandedFactorisation
from shared_models.plan_federation import FixedCohort
from shared_models.plan_section import Count, Section

if TYPE_CHECKING:
    from privacy.factorisation import BandedMatrix, BandedNoise, Participation
    from shared_models.plan import Plan

MOST_ROUNDS: Final = 2000
"""A site computes the matrix of whatever plan is offered to it."""

COMPUTED: Final = ("participations", "factorisation")
"""Keys of [privacy.correlated] that resolving computes."""

_COMPUTED: Final = "In a resolved plan"


class CorrelatedPlan(Section):
    """Noise that partly cancels over the rounds, for cohorts that keep to a schema."""

    band: Count = Field(description="Rounds over which noise is correlated; at most separation.")
    separation: Count | None = Field(
        None, description="Fewest rounds from one of a client's participations to the next; default: band."
    )
    participations: Count | None = Field(
        None, description=f"{_COMPUTED}: most participations of one client, as many as separation leaves room for."
    )
    factorisation: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description=f"{_COMPUTED}: digest of the matrix, which follows from rounds, band and server momentum."
    )


def is_correlated(plan: Plan) -> bool:
    """Whether the noise of a run's rounds is correlated, and the run one release."""
    return plan.privacy.correlated is not None and plan.is_private


def participation_of(plan: Plan) -> Participation:
    """Who may take part when.

    Raises:
        ValueError: the plan has no such schema.
    """
    from privacy.factorisation import Participation

    table, rounds = _table(plan), plan.federation.rounds
    return Participation(rounds=rounds, separation=table.separation or table.band, most=rounds)


def matrix_of(plan: Plan) -> BandedMatrix:
    """The matrix of a plan's noise: the same on every machine.

    Raises:
        ValueError: the plan has none.
    """
    return _matrix(plan.federation.rounds, _table(plan).band, server_momentum(plan))


def server_momentum(plan: Plan) -> float:
    """Momentum with which the server adds up updates: what sums of them the noise is made for."""
    if plan.federation.strategy != "fedavgm":
        return 0.0
    given = plan.federation.strategy_options.get("server_momentum", 0.0)
    return float(given) if isinstance(given, int | float) and 0 <= given < 1 else 0.0


def correlated_release(plan: Plan) -> BandedFactorisation:
    """What a whole run releases of a client.

    Raises:
        ValueError: the plan is not resolved, or its noise is not correlated.
    """
    noise_multiplier, participation = plan.privacy.noise_multiplier, participation_of(plan)
    if noise_multiplier is None:
        raise ValueError("the plan is not resolved: its noise multiplier is unknown")
    return BandedFactorisation(
        noise_multiplier=noise_multiplier,
        rounds=plan.federation.rounds,
        band=_table(plan).band,
        separation=participation.separation,
        participations=participation.most,
        factorisation=matrix_of(plan).digest,
    )


def banded_noise(plan: Plan, dimensions: int) -> BandedNoise:
    """The noise of a run, before its first round.

    Args:
        plan: resolved.
        dimensions: trained values.

    Raises:
        ValueError: the plan is not resolved, or no grid is fine enough.
    """
    from privacy.factorisation import BandedNoise

    cohort, noise_multiplier = plan.federation.cohort, plan.privacy.noise_multiplier
    if noise_multiplier is None or not isinstance(cohort, FixedCohort):
        raise ValueError("the plan is not resolved: its noise multiplier is unknown")
    return BandedNoise(
        matrix=matrix_of(plan),
        participation=participation_of(plan),
        clipping_norm=plan.privacy.clipping_norm,
        noise_multiplier=noise_multiplier,
        dimensions=dimensions,
        contributions=cohort.size,
    )


def computed(plan: Plan) -> dict[str, int | str]:
    """What a resolved plan writes out."""
    found = participation_of(plan).most, matrix_of(plan).digest
    return dict(zip(COMPUTED, found, strict=True))


def check_correlated(plan: Plan, population: int) -> None:
    """Refuse a schema that cohorts can't keep to, or that the price isn't about. The plan is one of a trusted server.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    federation = plan.federation
    cohort, table = federation.cohort, _table(plan)
    if plan.privacy.adaptive is not None:
        raise ValueError(
            "privacy.adaptive with privacy.correlated: the noise of a run is made for one clipping norm; remove one of "
            "the two tables"
        )
    if not isinstance(cohort, FixedCohort):
        raise ValueError(
            f"federation.cohort.sampling = '{cohort.sampling}': with privacy.correlated every round has as many "
            "clients, drawn among those whose turn it may be; allowed: fixed"
        )
    if federation.rounds > MOST_ROUNDS:
        raise ValueError(
            f"federation.rounds = {federation.rounds}: with privacy.correlated allowed: at most {MOST_ROUNDS}"
        )
    separation = table.separation or table.band
    if table.band > min(separation, federation.rounds):
        raise ValueError(
            f"privacy.correlated.band = {table.band}: allowed: at most privacy.correlated.separation = {separation} "
            f"and federation.rounds = {federation.rounds}"
        )
    needed = participation_of(plan).least_population(cohort.size)
    if population < needed:
        raise ValueError(
            f"federation.cohort.size = {cohort.size} with privacy.correlated.separation = {separation}: needs a "
            f"population of {needed} clients, there are {population}; lower one of the two"
        )
    given = {name: getattr(table, name) for name in COMPUTED}
    if any(value is not None for value in given.values()) and given != computed(plan):
        names = " and ".join(f"privacy.correlated.{name}" for name in COMPUTED)
        raise ValueError(f"{names} stand in a resolved plan and are computed; remove them")


def _table(plan: Plan) -> CorrelatedPlan:
    if plan.privacy.correlated is None:
        raise ValueError("the plan's noise is not correlated: it has no such schema")
    return plan.privacy.correlated


@lru_cache(maxsize=16)
def _matrix(rounds: int, band: int, momentum: float) -> BandedMatrix:
    from privacy.factorisation import Workload, square_root

    return square_root(Workload(rounds=rounds, momentum=momentum), band)
