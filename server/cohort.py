"""Who takes part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shared_models.plan import Plan
from shared_models.plan_federation import AllCohort, FixedCohort
from shared_models.seeds import derive_seed


def sample_cohort(plan: Plan, round_number: int, clients: Sequence[str]) -> list[str]:
    """The cohort of a round, in the order of `clients`; it may be empty under Poisson sampling.

    The draw depends on the plan's seed and the round alone, so that every grid, and a resumed run, has the same
    cohorts. No claim of amplification rests on it: under local privacy a client is charged for each round it takes
    part in, whoever knows that it did (rule 3).
    """
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
