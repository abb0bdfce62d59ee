"""Plans of one round with a few records a client, and rounds of them that are played once a session."""

from __future__ import annotations

from functools import cache

from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.attacks.reconstruction.overheard import Round, play_round
from simulations.scenarios import find_plan

NOISE = ("privacy.unit=example", "privacy.delta=1e-5", "training.sample_rate=1.0")
LOCAL = (*NOISE, "privacy.trust=local")
SUM = (*NOISE, "privacy.trust=distributed", "secure_sum.honest=1.0", "secure_sum.corrupt=0.0")


def one_round(*overrides: str, images: int = 1, cohort: int = 3) -> Plan:
    """Of digits, 90 to train on, shared among clients with so many each."""
    return resolve(
        find_plan(
            "digits-plain",
            (
                "data.test_fraction=0.95",
                f"data.partition={{kind='iid',clients={80 // images}}}",
                f"federation.cohort={{sampling='fixed',size={cohort}}}",
                "federation.rounds=1",
                "model.name=mlp",
                "model.options={hidden=[32],activation='tanh'}",
                "training.steps=1",
                "training.momentum=0.0",
                f"training.expected_batch_size={images}",
                *overrides,
            ),
        )
    )


@cache
def played(*overrides: str, images: int = 1, cohort: int = 3) -> Round:
    """The same, played."""
    return play_round(one_round(*overrides, images=images, cohort=cohort))
