"""The resolved plan: both numbers written out, the claim recomputed, promises without proof refused (Principle 3)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from privacy.mechanisms import DpSgd
from security.errors import UsageError
from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, read_plan, write_plan
from shared_models.resolve import planned_epsilon, resolve

SMALL = {"name": "mlp", "options": {"hidden": [2]}}


def plan_of(privacy: dict[str, Any], **training: Any) -> Plan:
    """Four rounds of three full batches, which the accountant prices at once."""
    return Plan.model_validate(
        {
            "model": SMALL,
            "training": {"sample_rate": 1.0, "steps": 3, **training},
            "federation": {"rounds": 4},
            "privacy": privacy,
        }
    )


def independent_epsilon(plan: Plan) -> float:
    """The price of all rounds by other means: exact for full batches, else a finer PLD (an upper bound, too)."""
    noise, steps = plan.privacy.noise_multiplier, plan.training.local_steps * plan.federation.rounds
    assert noise is not None
    if plan.training.sample_rate == 1:
        # Balle & Wang 2018 (arXiv 1805.06530), theorem 8, for one Gaussian mechanism as good as all steps together.
        mu = math.sqrt(steps) / noise

        def excess(eps: float) -> float:
            return float(
                norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-mu / 2 - eps / mu)) - plan.privacy.delta
            )

        return float(brentq(excess, 0, mu * mu + 20 * mu, xtol=1e-12))
    step = dp_event.PoissonSampledDpEvent(plan.training.sample_rate, dp_event.GaussianDpEvent(noise))
    accountant = PLDAccountant(value_discretization_interval=2e-4)
    for _ in range(plan.federation.rounds):
        accountant.compose(step, plan.training.local_steps)
    return float(accountant.get_epsilon(plan.privacy.delta))


# --- epsilon and noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "training"),
    [(0.5, {}), (8.0, {}), (1 / 3, {"steps": 1}), (3.0, {"sample_rate": 0.2, "steps": 5})],
)
def test_rule_4_the_noise_for_an_epsilon_keeps_it_and_is_not_much_more_than_it_takes(
    epsilon: float, training: dict[str, Any]
) -> None:
    plan = resolve(plan_of({"epsilon": epsilon, "delta": 1e-5}, **training))
    assert plan.privacy.epsilon == epsilon
    assert plan.privacy.calibrated_from == "epsilon"
    assert planned_epsilon(plan) <= epsilon
    assert epsilon - 0.01 <= independent_epsilon(plan) <= epsilon
    noise = plan.privacy.noise_multiplier
    assert noise is not None
    weaker = plan.model_copy(
        update={"privacy": plan.privacy.model_copy(update={"noise_multiplier": noise - 1e-4})},
    )
    assert planned_epsilon(weaker) > epsilon


@pytest.mark.parametrize(("noise", "training"), [(1.0, {}), (30.0, {}), (1.1, {"sample_rate": 0.2, "steps": 5})])
def test_rule_4_the_epsilon_of_a_noise_is_never_below_its_price(noise: float, training: dict[str, Any]) -> None:
    plan = resolve(plan_of({"noise_multiplier": noise, "delta": 1e-6}, **training))
    assert plan.privacy.noise_multiplier == noise
    assert plan.privacy.calibrated_from == "noise_multiplier"
    assert plan.privacy.epsilon is not None
    exact = independent_epsilon(plan)
    assert exact <= plan.privacy.epsilon <= exact * 1.005 + 1e-3


def test_rule_4_the_whole_run_is_priced_and_not_one_round() -> None:
    long = plan_of({"noise_multiplier": 2.0})
    once = Plan.model_validate({**long.model_dump(), "federation": {"rounds": 1}})
    assert planned_epsilon(long) > 1.8 * planned_epsilon(once)
    release = DpSgd(noise_multiplier=2.0, sample_rate=1.0, steps=12)
    as_one = Plan.model_validate({**once.model_dump(), "training": {"sample_rate": 1.0, "steps": release.steps}})
    assert planned_epsilon(as_one) == planned_epsilon(long)


@pytest.mark.parametrize("privacy", [{"epsilon": 2.0}, {"noise_multiplier": 6.0}])
def test_rule_6_where_a_person_has_several_records_the_person_is_priced(privacy: dict[str, Any]) -> None:
    people = {"name": "digits", "person_column": "who", "max_rows_per_person": 3}
    record, person = plan_of(privacy), Plan.model_validate({**plan_of(privacy).model_dump(), "data": people})
    of_record, of_person = resolve(record).privacy, resolve(person).privacy
    if "epsilon" in privacy:  # three records move a full batch's sum by three clipping norms: three times the noise
        assert of_person.noise_multiplier == pytest.approx(3 * of_record.noise_multiplier, abs=3e-4)  # type: ignore[operator]
        assert of_person.epsilon == of_record.epsilon
    else:
        third = resolve(plan_of({"noise_multiplier": 2.0})).privacy
        assert of_person.epsilon == third.epsilon
        assert of_person.noise_multiplier == of_record.noise_multiplier
    assert resolve(resolve(person)) == resolve(person)


def evaluated(plan: Plan, every: int = 2, count_noise: float = 30.0, **data: Any) -> Plan:
    """The same plan, judged by its clients."""
    evaluation = {"where": "clients", "every": every, "count_noise": count_noise}
    return Plan.model_validate({**plan.model_dump(), "evaluation": evaluation, **data})


@pytest.mark.parametrize("privacy", [{"epsilon": 1.0}, {"noise_multiplier": 12.0}])
@pytest.mark.parametrize(("people", "most"), [({}, 1), ({"person_column": "who", "max_rows_per_person": 3}, 3)])
def test_rule_10_what_clients_say_of_the_model_is_paid_for_out_of_the_same_epsilon(
    privacy: dict[str, Any], people: dict[str, Any], most: int
) -> None:
    plan = resolve(evaluated(plan_of(privacy), count_noise=30.0 * most, data={"name": "digits", **people}))
    noise, claimed = plan.privacy.noise_multiplier, plan.privacy.epsilon
    assert noise is not None
    assert claimed is not None
    # 12 full batches, and two evaluations of two counts each; one unit moves a pair of counts by most * sqrt(2).
    mu_squared = 12 * (most / noise) ** 2 + 2 * (math.sqrt(2) * most / (30.0 * most)) ** 2
    together = plan_of({"noise_multiplier": math.sqrt(12 / mu_squared), "delta": plan.privacy.delta})
    exact = independent_epsilon(together)
    assert exact <= planned_epsilon(plan) <= claimed
    assert claimed <= exact * 1.005 + 1e-3
    if "epsilon" in privacy:
        alone = resolve(plan_of(privacy)).privacy.noise_multiplier
        assert alone is not None
        assert noise > most * alone
    assert resolve(plan) == plan


def test_rule_10_counts_that_cost_more_than_the_whole_budget_are_refused_and_named() -> None:
    with pytest.raises(UsageError, match=r"what else is planned.* costs .*give the other releases more noise"):
        resolve(evaluated(plan_of({"epsilon": 0.5}), count_noise=2.0))
    with pytest.raises(UsageError, match=r"evaluation\.count_noise = 0\.001: too little noise"):
        resolve(evaluated(plan_of({"noise_multiplier": 5.0}), count_noise=1e-3))


def test_without_privacy_or_elsewhere_judging_costs_nothing() -> None:
    plain = resolve(evaluated(plan_of({"trust": "none"})))
    assert plain.planned_counts() == {}
    private = resolve(plan_of({"epsilon": 1.0}))
    assert resolve(evaluated(plan_of({"epsilon": 1.0}), count_noise=2.0**34)).privacy.noise_multiplier == (
        private.privacy.noise_multiplier
    )


def test_an_epsilon_is_rounded_up_so_that_no_client_refuses_the_last_round_for_one_bit() -> None:
    plan = resolve(plan_of({"noise_multiplier": 1.7}))
    exact = planned_epsilon(plan)
    assert plan.privacy.epsilon is not None
    assert exact <= plan.privacy.epsilon <= exact + 1e-6
    assert math.isclose(plan.privacy.epsilon * 1e6, round(plan.privacy.epsilon * 1e6), abs_tol=1e-6)


def test_so_much_noise_that_nothing_is_spent_still_gives_a_positive_epsilon() -> None:
    assert resolve(plan_of({"noise_multiplier": 1e6, "delta": 0.1})).privacy.epsilon == 1e-6


@pytest.mark.parametrize("noise", [1e-4, 0.01])
def test_too_little_noise_for_any_claim_is_refused(noise: float) -> None:
    with pytest.raises(UsageError, match=r"^privacy\.noise_multiplier = .* too little noise for any epsilon"):
        resolve(plan_of({"noise_multiplier": noise}))


def test_an_epsilon_that_no_noise_can_keep_is_refused() -> None:
    with pytest.raises(UsageError, match="can't be met"):
        resolve(plan_of({"epsilon": 1e-9, "delta": 1e-12}, sample_rate=1.0, steps=10_000))


def test_a_plan_without_privacy_has_no_epsilon() -> None:
    with pytest.raises(ValueError, match="has no epsilon"):
        planned_epsilon(plan_of({"trust": "none"}))


# --- resolving again -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "privacy", [{"epsilon": 2.0}, {"epsilon": 1 / 3}, {"noise_multiplier": 1.3}, {"trust": "none"}]
)
def test_resolving_again_changes_nothing(privacy: dict[str, Any]) -> None:
    once = resolve(plan_of(privacy))
    assert resolve(once) == once
    assert resolve(once).digest() == once.digest()
    read = parse_plan(write_plan(once), where="p")
    assert resolve(read).digest() == once.digest()


@pytest.mark.parametrize("privacy", [{"epsilon": 2.0}, {"noise_multiplier": 1.3}])
def test_an_override_of_a_resolved_plan_is_resolved_anew(privacy: dict[str, Any]) -> None:
    once = resolve(plan_of(privacy))
    longer = resolve(parse_plan(write_plan(once), where="p", overrides=["federation.rounds=9"]))
    assert longer.privacy.calibrated_from == once.privacy.calibrated_from
    assert planned_epsilon(longer) <= longer.privacy.epsilon  # type: ignore[operator]
    given = once.privacy.calibrated_from
    assert getattr(longer.privacy, given) == getattr(once.privacy, given)  # type: ignore[arg-type]
    assert longer.privacy != once.privacy


def tampered(plan: Plan, **changes: Any) -> Plan:
    return Plan.model_validate(
        plan.model_copy(update={"privacy": plan.privacy.model_copy(update=changes)}).model_dump()
    )


@pytest.mark.parametrize("privacy", [{"epsilon": 2.0}, {"noise_multiplier": 1.3}])
def test_principle_3_a_resolved_plan_that_promises_more_than_its_noise_gives_is_refused(
    privacy: dict[str, Any],
) -> None:
    once = resolve(plan_of(privacy))
    assert once.privacy.noise_multiplier is not None
    assert once.privacy.epsilon is not None
    for changes in (
        {"noise_multiplier": once.privacy.noise_multiplier - 1e-3},
        {"noise_multiplier": 0.01},
        {"epsilon": once.privacy.epsilon - 0.01},
        {"epsilon": once.privacy.epsilon / 2},
        {"delta": once.privacy.delta / 10},
    ):
        with pytest.raises(UsageError, match=r"^privacy\.(epsilon|noise_multiplier) = "):
            resolve(tampered(once, **changes))
    for key, value in (("federation", {"rounds": 5}), ("training", {"sample_rate": 1.0, "steps": 4})):
        with pytest.raises(UsageError, match=r"^privacy\.epsilon = "):
            resolve(Plan.model_validate({**once.model_dump(), key: value}))


@pytest.mark.parametrize("privacy", [{"epsilon": 2.0}, {"noise_multiplier": 1.3}])
def test_more_noise_than_the_promise_takes_is_kept(privacy: dict[str, Any]) -> None:
    once = resolve(plan_of(privacy))
    assert once.privacy.noise_multiplier is not None
    safer = tampered(once, noise_multiplier=once.privacy.noise_multiplier + 1.0)
    assert resolve(safer) == safer


# --- the rest ------------------------------------------------------------------------------------------------------


def test_defaults_are_filled_in() -> None:
    plan = resolve(Plan.model_validate({"model": {"name": "mlp"}, "privacy": {"trust": "none"}}))
    assert plan.training.steps == 10
    assert plan.federation.weighting == "examples"
    assert plan.model.options == {"hidden": [64, 32], "activation": "relu", "dropout": 0.0}
    assert resolve(plan_of({"noise_multiplier": 5.0})).federation.weighting == "uniform"
    by_epochs = resolve(Plan.model_validate({"training": {"epochs": 2}, "privacy": {"trust": "none"}}))
    assert (by_epochs.training.epochs, by_epochs.training.steps) == (2, None)


def test_a_resolved_plan_finds_its_data_from_wherever_it_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"classes": ["a", "b"], "target": "y", "columns": {"x": {"kind": "numeric", "low": 0.0, "high": 1.0}}}
    data = {"name": "csv", "path": "own.csv", "card": card}
    monkeypatch.chdir(tmp_path)
    once = resolve(Plan.model_validate({"data": data, "model": SMALL, "privacy": {"trust": "none"}}))
    assert once.data.path == str(tmp_path / "own.csv")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.toml").write_text(write_plan(once))
    monkeypatch.chdir("/")
    again = read_plan(tmp_path / "run" / "plan.toml")
    assert again == once
    assert resolve(again) == once


def test_a_plan_without_privacy_promises_no_number() -> None:
    given = {"epsilon": 1.0, "noise_multiplier": 2.0, "budget": 3.0, "client_budgets": {"0": 1.0}}
    plan = resolve(plan_of({"trust": "none", "unprotected": ["examples"], **given}))
    privacy = plan.privacy
    assert (privacy.client_budgets, privacy.unprotected) == ({}, ())
    assert (privacy.epsilon, privacy.noise_multiplier, privacy.calibrated_from, privacy.budget) == (None,) * 4


def test_rule_7_a_private_plan_has_its_network_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def refuse(*arguments: Any) -> None:
        seen.append(arguments)
        raise UsageError("it mixes examples")

    monkeypatch.setattr("shared_models.private_trainable.check_private_trainable", refuse)
    with pytest.raises(UsageError, match="it mixes examples"):
        resolve(plan_of({"noise_multiplier": 1.0}))
    assert [arguments[1:] for arguments in seen] == [(ExampleForm((1, 8, 8), 10), "bookkeeping")]
    resolve(plan_of({"trust": "none"}))
    # A whole client is the unit: its records may mix in its network as they like.
    resolve(plan_of({"unit": "client", "trust": "distributed", "noise_multiplier": 1.0}))
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "cnnn"}}, r"model\.name = 'cnnn': unknown model; did you mean cnn\?"),
        ({"model": {"name": "mlp", "options": {"hiden": [3]}}}, r"model\.options\.hiden: unknown option"),
        ({"model": {"name": "mlp", "options": {"dropout": float("nan")}}}, r"model\.options\.dropout"),
        ({"model": {"name": "mlp", "options": {"dropout": {"a": 1}}}}, r"model\.options\.dropout"),
        ({"data": {"name": "heart-disease"}, "model": {"name": "cnn"}}, r"takes images"),
        ({"data": {"name": "csv", "path": "x.csv"}}, r"data\.card: "),
    ],
)
def test_a_network_or_data_set_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(Plan.model_validate({"privacy": {"trust": "none"}, **changes}))


@pytest.mark.parametrize(
    ("data", "weights", "message"),
    [
        ("heart-disease", [1.0, 2.0, 3.0], "training.class_weights: are 3, the data has 2 classes; give as many"),
        ("digits", [1.0, 2.0], "training.class_weights: are 2, the data has 10 classes; give as many"),
        ("shakespeare", [1.0] * 98, "training.class_weights: a language model's tokens have none"),
    ],
)
def test_rule_5_weights_that_would_fail_with_some_record_are_refused(
    data: str, weights: list[float], message: str
) -> None:
    model = "recurrent" if data == "shakespeare" else "linear"
    document = {
        "data": {"name": data, "partition": {"kind": "iid", "clients": 2}},
        "model": {"name": model},
        "training": {"class_weights": weights},
    }
    with pytest.raises(UsageError) as caught:
        resolve(Plan.model_validate(document))
    assert message in str(caught.value)
