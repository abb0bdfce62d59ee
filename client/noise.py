"""Where a client's noise comes from."""

from __future__ import annotations

from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from shared_models.plan import Plan
from shared_models.seeds import derive_key


def noise_of(plan: Plan, purpose: str, client: str, round_number: int) -> NoiseSource:
    """The noise of one release: the operating system's entropy, or in a simulation that says so, the plan's seed."""
    if plan.privacy.noise == "reproducible":  # in a simulation: a deployed site has refused such a plan
        return ReproducibleNoise(derive_key(plan.seed, purpose, client, round_number))
    return SecretNoise()
