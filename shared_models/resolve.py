"""From the plan a person wrote to the plan that runs: defaults filled in, noise or epsilon computed, all checked.

The resolved plan is what both sides pin by its digest before the first round (rule 4). It writes out both the target
epsilon and the noise multiplier; resolving it again recomputes the claim, so a file that promises more than its noise
gives is refused, and changes nothing in one that keeps its promise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from privacy.accountant import epsilon as epsilon_of
from privacy.calibration import least_noise_multiplier, noise_multiplier_for
from privacy.mechanisms import Release
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.features.apply import check_source, model_form
from shared_models.frozen import check_frozen
from shared_models.histograms import resolved_statistics
from shared_models.plan import Plan, PrivacyPlan
from shared_models.plan_adaptive import filled
from shared_models.plan_asynchronous import filled_asynchronous, is_asynchronous, participations_of
from shared_models.plan_central import central_grid, is_central, population_of
from shared_models.plan_correlated import computed as computed_schema
from shared_models.plan_correlated import participation_of
from shared_models.plan_data import located
from shared_models.plan_personal import filled_personal
from shared_models.plan_secure_sum import COMPUTED, added_up, computed
from shared_models.registry import build_for, check_options
from shared_models.running_statistics import check_no_running_statistics


def _check_class_weights(plan: Plan) -> None:
    """A weight too few would fail with the first record of that class: a refusal that depends on data (rule 5)."""
    weights, form = plan.training.class_weights, card_for(plan.data).form
    if weights is None:
        return
    if form.at_each_place:
        raise UsageError("training.class_weights: a language model's tokens have none; remove them from the plan")
    if len(weights) != form.classes:
        raise UsageError(
            f"training.class_weights: are {len(weights)}, the data has {form.classes} classes; give as many"
        )


def _check_augment(plan: Plan) -> None:
    """What can't be done to a record would fail with the first that is drawn (rule 5)."""
    augment = plan.training.augment
    if augment is None:
        return
    if plan.features is not None:
        raise UsageError("training.augment: what a feature map has made of records isn't changed; remove one of both")
    try:
        augment.check(card_for(plan.data).form)
    except ValueError as error:
        raise UsageError(f"training.augment: {error}") from error


def resolve(plan: Plan) -> Plan:
    """Fill in what the plan leaves open and check that it can run.

    Raises:
        UsageError: the model, its options, the data card or the privacy figures don't fit together.
    """
    if plan.statistics is not None:
        plan = plan.model_copy(update={"statistics": resolved_statistics(plan)})
    _check_class_weights(plan)
    _check_augment(plan)
    if is_asynchronous(plan):
        plan = _with_schedule(plan)
    options = check_options(plan.model.name, plan.model.options)
    model = build_for(plan)
    if plan.training.gradient_checkpointing:
        from privacy.dpsgd.gradient_checkpointing import checkpoint_layers  # brings the engine, and with it Opacus

        checkpoint_layers(model)
    by_record = plan.privacy.unit == "example"  # a client's whole update may mix its records as it likes
    if plan.is_private and by_record and plan.statistics is None:
        from shared_models.private_trainable import check_private_trainable

        check_private_trainable(model, model_form(plan), plan.training.dp_engine)
    check_no_running_statistics(model)
    changes: dict[str, Any] = {
        "model": plan.model.model_copy(update={"options": options, "frozen": check_frozen(plan, model)}),
        "federation": plan.federation.model_copy(update={"weighting": plan.weighting}),
    }
    if plan.personal is not None:
        changes["personal"] = filled_personal(plan, model)
    if plan.features is not None:
        changes["features"] = plan.features.model_copy(update={"source": check_source(plan)})
    if plan.data.path is not None:  # a run may be gone on with from another folder than the one it was begun in
        changes["data"] = plan.data.model_copy(update={"path": located(plan.data.path, Path())})
    if plan.training.epochs is None:
        changes["training"] = plan.training.model_copy(
            update={"steps": 1 if plan.is_joint else plan.training.local_steps}
        )
    if plan.privacy.trust == "distributed":
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        plan = _for_vectors(plan, added_up(plan, trained))
    privacy = _with_tables(plan, _resolve_privacy(plan))
    changes["privacy"] = privacy
    if is_central(plan):
        check_central_grid(plan.model_copy(update={"privacy": privacy}), sum(_trained(model)))
        changes["federation"] = changes["federation"].model_copy(update={"population": population_of(plan)})
    if plan.privacy.trust == "distributed":
        found = _computed(plan.model_copy(update={"privacy": privacy}))
        changes["secure_sum"] = plan.secure.model_copy(update=found)
    return Plan.model_validate(plan.model_copy(update=changes).model_dump())


def _with_schedule(plan: Plan) -> Plan:
    """A plan whose clients work at their own pace, by a schedule that can be kept."""
    try:
        table = filled_asynchronous(plan)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return plan.model_copy(update={"federation": plan.federation.model_copy(update={"asynchronous": table})})


def _with_tables(plan: Plan, privacy: PrivacyPlan) -> PrivacyPlan:
    """The tables below [privacy], with what follows from the noise and the schema written out."""
    changes: dict[str, Any] = {}
    plan = plan.model_copy(update={"privacy": privacy})
    if privacy.adaptive is not None:
        try:
            changes["adaptive"] = filled(plan)
        except ValueError as error:
            raise UsageError(str(error)) from error
    if privacy.correlated is not None:
        schema = {"separation": participation_of(plan).separation, **computed_schema(plan)}
        changes["correlated"] = privacy.correlated.model_copy(update=schema)
    return privacy.model_copy(update=changes)


def _trained(model: nn.Module) -> Iterator[int]:
    return (p.numel() for p in model.parameters() if p.requires_grad)


def check_central_grid(plan: Plan, dimensions: int) -> None:
    """Refuse a plan whose sums have no grid of whole numbers fine enough for their noise (rule 9).

    Raises:
        UsageError: it has none.
    """
    try:
        central_grid(plan, dimensions)
    except ValueError as error:
        raise UsageError(f"privacy.noise_multiplier: {error}") from error


def _for_vectors(plan: Plan, dimension: int) -> Plan:
    """A plan for secure sums of vectors of that dimension, whose thresholds are known to exist."""
    given = plan.secure.dimension
    if given not in (None, dimension):
        raise UsageError(
            f"secure_sum.dimension = {given}: the network has {dimension}; remove {', '.join(COMPUTED)} from "
            "[secure_sum], and they are computed anew"
        )
    try:
        plan.secure_parameters()
    except ValueError as error:
        raise UsageError(f"secure_sum: {error}") from error
    return plan.model_copy(update={"secure_sum": plan.secure.model_copy(update={"dimension": dimension})})


def _computed(plan: Plan) -> dict[str, float | int]:
    assert plan.secure.dimension is not None
    try:
        return computed(plan, dimension=plan.secure.dimension)
    except ValueError as error:
        raise UsageError(f"privacy.noise_multiplier: {error}") from error


def _resolve_privacy(plan: Plan) -> PrivacyPlan:
    privacy = plan.privacy
    if not plan.is_private:
        # Numbers that promise nothing are not written into a plan without privacy.
        cleared = dict.fromkeys(("epsilon", "noise_multiplier", "calibrated_from", "budget"))
        tables = {"adaptive": None, "correlated": None}
        return privacy.model_copy(update={**cleared, **tables, "client_budgets": {}, "unprotected": ()})
    if privacy.noise_multiplier is None:
        assert privacy.epsilon is not None
        noise_multiplier = _calibrated(plan, privacy.epsilon)
        return privacy.model_copy(update={"noise_multiplier": noise_multiplier, "calibrated_from": "epsilon"})
    if privacy.trust == "distributed":
        _computed(plan)  # or there is no release to price
    epsilon = planned_epsilon(plan)
    if not math.isfinite(epsilon):
        counts = f", evaluation.count_noise = {plan.evaluation.count_noise}" if plan.planned_counts() else ""
        raise UsageError(
            f"privacy.noise_multiplier = {privacy.noise_multiplier}{counts}: too little noise for any epsilon to be "
            "claimed; raise it, or plan fewer steps or rounds"
        )
    if privacy.epsilon is None:
        return privacy.model_copy(update={"epsilon": _rounded_up(epsilon), "calibrated_from": "noise_multiplier"})
    if privacy.epsilon < epsilon:
        computed = "noise_multiplier" if privacy.calibrated_from == "epsilon" else "epsilon"
        raise UsageError(
            f"privacy.epsilon = {privacy.epsilon}: the plan's noise_multiplier = {privacy.noise_multiplier} gives "
            f"{_rounded_up(epsilon)}; remove {computed} and calibrated_from, and it is computed anew"
        )
    return privacy


def _rounded_up(epsilon: float) -> float:
    """To a multiple of 1e-6, at least one.

    The last bits of an epsilon differ from machine to machine, and a client that finds one bit more than the plan
    promises would refuse the last round.
    """
    return max(math.ceil(epsilon * 1e6), 1) / 1e6


def _calibrated(plan: Plan, epsilon: float) -> float:
    if plan.privacy.trust in ("distributed", "central") or plan.statistics is not None:

        def release(noise_multiplier: float) -> Release:
            privacy = plan.privacy.model_copy(update={"noise_multiplier": noise_multiplier})
            found = plan.model_copy(update={"privacy": privacy}).train_release()
            assert found is not None
            return found

        return least_noise_multiplier(
            release,
            times=1 if plan.is_one_release else plan.federation.rounds + plan.spare_rounds,
            epsilon=epsilon,
            delta=plan.privacy.delta,
            also=plan.planned_counts(),
        )
    return noise_multiplier_for(
        epsilon=epsilon,
        delta=plan.privacy.delta,
        sample_rate=plan.training.sample_rate,
        steps=plan.training.local_steps * participations_of(plan),
        records_per_unit=plan.records_per_unit,
        also=plan.planned_counts(),
    )


def planned_epsilon(plan: Plan) -> float:
    """Epsilon of a client that takes part in every planned round (rule 4: the planned rounds are what is claimed).

    Spare attempts count as if they were made.
    """
    if not plan.is_private:
        raise ValueError("a plan without privacy has no epsilon")
    return epsilon_of(plan.planned_trainings() + plan.planned_counts(), plan.privacy.delta).epsilon
