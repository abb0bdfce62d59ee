"""What follows from `privacy.unit = "client"` with `privacy.trust = "central"`: a trusted server adds the noise.

What is divided by, and what a round costs, are public numbers of the plan alone (rule 1): the population, and the rate
or size of a cohort. Cohorts that are drawn are *secret*: their figures hold against those who never learn who took part
(rule 3), so a plan with one is charged whole, to everybody, before its first round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from privacy.mechanisms import BandedFactorisation, ClientLevel
from privacy.release_grid import ReleaseGrid
from shared_models.plan_adaptive import grid_norm, is_adaptive, summed_values
from shared_models.plan_asynchronous import asynchronous_of, is_asynchronous, participations_of
from shared_models.plan_correlated import banded_noise, check_correlated, correlated_release, is_correlated
from shared_models.plan_federation import AllCohort, FixedCohort, PoissonCohort

if TYPE_CHECKING:
    from shared_models.plan import Plan


def is_central(plan: Plan) -> bool:
    """Whether updates are entrusted to a server that adds the noise to their sum."""
    return plan.privacy.trust == "central"


def gives_joint(plan: Plan) -> bool:
    """Whether clients entrust to that server one vector, of their update and their bit."""
    return is_central(plan) and is_adaptive(plan)


def has_secret_cohorts(plan: Plan) -> bool:
    """Whether the figures count on nobody learning who took part in a round; with correlated noise they don't."""
    return is_central(plan) and not isinstance(plan.federation.cohort, AllCohort) and not is_correlated(plan)


def population_of(plan: Plan) -> int:
    """How many clients there are, as the plan says.

    Raises:
        ValueError: nothing in the plan says it, or it says two numbers.
    """
    given = plan.federation.population
    parts = plan.data.clients
    if given is None and parts is None:
        raise ValueError(
            "federation.population: give the number of clients there are, which data.partition doesn't tell; with "
            "privacy.trust = 'central' sums are divided by it"
        )
    if given is not None and parts not in (None, given):
        raise ValueError(
            f"federation.population = {given} is not data.partition.clients = {parts}; remove federation.population"
        )
    found = parts if given is None else given
    assert found is not None
    return found


def expected_cohort(plan: Plan) -> float:
    """What the sum of a round is divided by: how many updates there are on average, never how many came (rule 1)."""
    cohort, population = plan.federation.cohort, population_of(plan)
    if is_asynchronous(plan):
        return float(asynchronous_of(plan).buffer)
    if isinstance(cohort, FixedCohort):
        return float(cohort.size)
    return cohort.rate * population if isinstance(cohort, PoissonCohort) else float(population)


def central_release(plan: Plan) -> BandedFactorisation | ClientLevel:
    """What one round releases, of every client of the population, whether it took part or not; with correlated noise
    what the whole run does.

    Raises:
        ValueError: the plan is not resolved.
    """
    noise_multiplier, cohort = plan.privacy.noise_multiplier, plan.federation.cohort
    if is_correlated(plan):
        return correlated_release(plan)
    if noise_multiplier is None:
        raise ValueError("the plan is not resolved: its noise multiplier is unknown")
    if isinstance(cohort, PoissonCohort):
        return ClientLevel(noise_multiplier=noise_multiplier, cohort="poisson", rate=cohort.rate)
    if isinstance(cohort, FixedCohort):
        of = population_of(plan)
        return ClientLevel(noise_multiplier=noise_multiplier, cohort="fixed", size=cohort.size, of=of)
    # Clients at their own pace: of the whole run, whose rounds have one update of a client each, in so many of them.
    rounds = participations_of(plan) if is_asynchronous(plan) else 1
    return ClientLevel(noise_multiplier=noise_multiplier, cohort="full", rounds=rounds)


def central_grid(plan: Plan, dimensions: int) -> ReleaseGrid:
    """On which whole numbers updates are added up, and how much noise their sum gets.

    Args:
        plan: resolved.
        dimensions: trained values.

    Raises:
        ValueError: the plan is not resolved, or no grid is fine enough.
    """
    privacy = plan.privacy
    if privacy.noise_multiplier is None:
        raise ValueError("the plan is not resolved: its noise multiplier is unknown")
    if is_correlated(plan):
        return banded_noise(plan, dimensions).grid
    return ReleaseGrid.of(
        clipping_norm=grid_norm(plan),
        noise_multiplier=privacy.noise_multiplier,
        dimensions=summed_values(plan, dimensions),
    )


def check_central(plan: Plan) -> None:
    """Refuse what a server that adds the noise can't do, or what would tell more than the noise hides.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    privacy, federation = plan.privacy, plan.federation
    if not is_central(plan):
        if federation.population is not None:
            raise ValueError(
                "federation.population belongs to privacy.trust = 'central', whose sums are divided by it; remove it"
            )
        if is_correlated(plan):
            raise ValueError(
                f"privacy.correlated belongs to privacy.trust = 'central', whose server keeps what correlates the "
                f"noise, not to '{privacy.trust}'; remove it"
            )
        return
    population = population_of(plan)
    if isinstance(federation.cohort, FixedCohort) and federation.cohort.size > population:
        raise ValueError(
            f"federation.cohort.size = {federation.cohort.size} is more than federation.population = {population}"
        )
    if plan.evaluates_at_clients:
        raise ValueError(
            "evaluation.where = 'clients' would release counts of single clients, which are what is protected; with "
            "privacy.unit = 'client' allowed: server, none"
        )
    if privacy.unprotected:
        raise ValueError(
            f"privacy.unprotected = {list(privacy.unprotected)} says of one client what the noise hides; with "
            "privacy.trust = 'central' allowed: []"
        )
    if is_correlated(plan):
        check_correlated(plan, population)
