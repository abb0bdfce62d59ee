"""From the plan a person wrote to the plan that runs: defaults filled in, noise or epsilon computed, all checked.

The resolved plan is what both sides pin by its digest before the first round (rule 4). It writes out both the target
epsilon and the noise multiplier; reading it again recomputes the claim, so a file that promises more than its noise
gives is refused.
"""

from __future__ import annotations

from typing import Any

from privacy.accountant import epsilon as epsilon_of
from privacy.calibration import noise_multiplier_for
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan import Plan, PrivacyPlan
from shared_models.private_trainable import check_private_trainable
from shared_models.registry import build, check_options

# Which (unit, trust) pairs this version can run; the plan's language already knows the others.
OFFERED = (("example", "local"),)


def resolve(plan: Plan) -> Plan:
    """Fill in what the plan leaves open and check that it can run.

    Raises:
        UsageError: the model, its options, the data card or the privacy figures don't fit together.
    """
    _check_offered(plan)
    options = check_options(plan.model.name, plan.model.options)
    card = card_for(plan.data)
    model = build(plan.model.name, options, input_shape=card.input_shape, classes=len(card.classes), seed=0)
    if plan.is_private:
        check_private_trainable(model, card.input_shape, len(card.classes))
    changes: dict[str, Any] = {
        "model": plan.model.model_copy(update={"options": options}),
        "federation": plan.federation.model_copy(update={"weighting": plan.weighting}),
    }
    if plan.training.epochs is None:
        changes["training"] = plan.training.model_copy(update={"steps": plan.training.local_steps})
    changes["privacy"] = _resolve_privacy(plan)
    return Plan.model_validate(plan.model_copy(update=changes).model_dump())


def _check_offered(plan: Plan) -> None:
    pair = (plan.privacy.unit, plan.privacy.trust)
    if plan.is_private and pair not in OFFERED:
        raise UsageError(
            f"privacy.trust = '{pair[1]}' with privacy.unit = '{pair[0]}': this version can't run it; allowed: "
            "trust = 'none', or trust = 'local' with unit = 'example'"
        )


def _resolve_privacy(plan: Plan) -> PrivacyPlan:
    privacy = plan.privacy
    if not plan.is_private:
        # Numbers that promise nothing are not written into a plan without privacy.
        cleared = dict.fromkeys(("epsilon", "noise_multiplier", "calibrated_from", "budget"))
        return privacy.model_copy(update=cleared)
    if privacy.noise_multiplier is None or privacy.calibrated_from == "epsilon":
        assert privacy.epsilon is not None
        noise_multiplier = _calibrated(plan, privacy.epsilon)
        if privacy.noise_multiplier is not None and privacy.noise_multiplier < noise_multiplier:
            raise UsageError(
                f"privacy.noise_multiplier = {privacy.noise_multiplier}: too little for the plan's epsilon = "
                f"{privacy.epsilon}, which needs {noise_multiplier}; remove noise_multiplier and calibrated_from"
            )
        return privacy.model_copy(update={"noise_multiplier": noise_multiplier, "calibrated_from": "epsilon"})
    epsilon = planned_epsilon(plan)
    if privacy.epsilon is not None and privacy.epsilon < epsilon * (1 - 1e-6):
        raise UsageError(
            f"privacy.epsilon = {privacy.epsilon}: the plan's noise gives {epsilon:.4f}; remove epsilon and "
            "calibrated_from"
        )
    return privacy.model_copy(update={"epsilon": epsilon, "calibrated_from": "noise_multiplier"})


def _calibrated(plan: Plan, epsilon: float) -> float:
    return noise_multiplier_for(
        epsilon=epsilon,
        delta=plan.privacy.delta,
        sample_rate=plan.training.sample_rate,
        steps=plan.training.local_steps * plan.federation.rounds,
    )


def planned_epsilon(plan: Plan) -> float:
    """Epsilon of a client that takes part in every planned round (rule 4: the planned rounds are what is claimed)."""
    release = plan.round_release()
    if release is None:
        raise ValueError("a plan without privacy has no epsilon")
    return epsilon_of({release: plan.federation.rounds}, plan.privacy.delta).epsilon
