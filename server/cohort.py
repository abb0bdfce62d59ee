"""Who takes part in a round."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from privacy.noise import SecretNoise
from security.errors import RunError
from shared_models.plan import Plan
from shared_models.plan_central import population_of
from shared_models.plan_correlated import participation_of
from shared_models.plan_federation import AllCohort, FixedCohort
from shared_models.seeds import derive_seed


def sample_cohort(plan: Plan, round_number: int, clients: Sequence[str]) -> list[str]:
    """The cohort of a round, in the order of `clients`; it may be empty under Poisson sampling.

    The draw depends on the plan's seed and the round alone, so that every grid, and a resumed run, has the same
    cohorts. No claim of amplification rests on it: under local privacy a client is charged for each round it takes
    part in, whoever knows that it did.

    Cohorts that must stay secret (rule 3) are drawn from the operating system's entropy instead, unless the plan's
    noise is reproducible too, and nothing is claimed. A draw is not kept: a round that was cut off is drawn again, for
    nothing of it was released, and nothing of the next draw follows from the first.

    Raises:
        RunError: there are more clients than the plan's fixed cohorts are drawn from.
    """
    if plan.has_secret_cohorts:
        chosen = _secret(plan, round_number, clients)
    else:
        cohort = plan.federation.cohort
        if isinstance(cohort, AllCohort):
            return list(clients)
        generator = np.random.default_rng(derive_seed(plan.seed, "cohort", round_number))
        if isinstance(cohort, FixedCohort):
            size = min(cohort.size, len(clients))
            chosen = generator.choice(len(clients), size=size, replace=False)
        else:
            chosen = np.flatnonzero(generator.random(len(clients)) < cohort.rate)
    return [clients[i] for i in sorted(int(i) for i in chosen)]


def scheduled_cohort(
    plan: Plan, round_number: int, clients: Sequence[str], asked: Mapping[str, Sequence[int]]
) -> list[str]:
    """The cohort of a round with correlated noise, in the order of `clients`: nobody comes too soon or too often.

    The draw follows from the plan's seed, and from who may take part: nothing is claimed from chance. A round that was
    begun is asked of those alone who were asked before, for being asked counts. Where too few may take part, because
    fewer clients are there than the plan says, the cohort is smaller, and the sum is divided as ever.

    Args:
        plan: resolved; its noise is correlated.
        round_number: from 1.
        clients: who can be asked.
        asked: rounds that each client was asked in.
    """
    begun = [client for client in clients if round_number in asked.get(client, ())]
    if begun or any(round_number in rounds for rounds in asked.values()):
        return begun
    participation, cohort = participation_of(plan), plan.federation.cohort
    assert isinstance(cohort, FixedCohort)
    free = [client for client in clients if participation.admits(asked.get(client, ()), round_number)]
    generator = np.random.default_rng(derive_seed(plan.seed, "cohort", round_number))
    chosen = generator.choice(len(free), size=min(cohort.size, len(free)), replace=False)
    return [free[i] for i in sorted(int(i) for i in chosen)]


def _secret(plan: Plan, round_number: int, clients: Sequence[str]) -> Iterable[int]:
    """Indices of a secret cohort, each client with the plan's own chance, however many clients there are.

    A fixed cohort is drawn from as many places as the plan says there are clients: a place where nobody is adds zeros.
    """
    cohort, among = plan.federation.cohort, len(clients)
    reproducible = plan.privacy.noise == "reproducible"
    generator = np.random.default_rng(derive_seed(plan.seed, "cohort", round_number))
    if isinstance(cohort, FixedCohort):
        places = population_of(plan)
        if among > places:
            raise RunError(
                f"{among} clients joined, more than federation.population = {places}: each would be drawn with another "
                "chance than its figures say; plan for all of them"
            )
        drawn = (
            generator.choice(places, size=cohort.size, replace=False)
            if reproducible
            else secrets.SystemRandom().sample(range(places), cohort.size)
        )
        return [int(place) for place in drawn if place < among]
    assert not isinstance(cohort, AllCohort)
    if reproducible:
        return [int(i) for i in np.flatnonzero(generator.random(among) < cohort.rate)]
    return [int(i) for i in SecretNoise().bernoulli(among, cohort.rate)]
