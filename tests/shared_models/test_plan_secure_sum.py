"""Plans for secure sums: what is refused, and that a resolved plan promises what its noise gives (rules 2, 3 and 9)."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.example_sum_grid import ExampleSumGrid
from privacy.mechanisms import DiscreteGaussianSum, DpSgd, Gaussian, RoundedGaussianSum, SkellamSum
from privacy.table_distance import skellam_largest
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, plan_from, write_plan
from shared_models.plan_secure_sum import (
    COMPUTED,
    added_up,
    cohort_size,
    computed,
    honest_and_corrupt,
    sum_grid,
    sum_release,
)
from shared_models.resolve import planned_epsilon, resolve

SMALL = {"name": "mlp", "options": {"hidden": [2]}}  # 160 values


def document(**sections: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "model": SMALL,
        "federation": {"rounds": 4},
        "privacy": {"unit": "client", "trust": "distributed", "noise_multiplier": 2.0},
    }
    return {**found, **{name: {**found.get(name, {}), **keys} for name, keys in sections.items()}}


def digested(plan: Plan) -> str:
    """The text that a plan's digest is of."""
    with pytest.MonkeyPatch.context() as patch:
        texts: list[bytes] = []
        real = hashlib.sha256
        patch.setattr("shared_models.plan.hashlib.sha256", lambda text: texts.append(text) or real(text))
        plan.model_copy().digest()  # that of a plan which was asked before is known
    return texts[0].decode()


def plan_of(**sections: dict[str, Any]) -> Plan:
    return plan_from(document(**sections), where="plan")


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        (
            {"privacy": {"unit": "example", "trust": "local"}, "secure_sum": {"honest": 0.6}},
            "secure_sum belongs to privacy.trust = 'distributed', not to 'local'; remove it",
        ),
        (
            {"federation": {"cohort": {"sampling": "poisson", "rate": 0.5}}},
            "federation.cohort.sampling = 'poisson': clients of a secure sum know who takes part, so chance saves no "
            "privacy; with privacy.trust = 'distributed' allowed: all, fixed",
        ),
        (
            {"federation": {"wire": "float16"}},
            "federation.wire = 'float16': what clients send is whole numbers under masks; with "
            "privacy.trust = 'distributed' allowed: float32",
        ),
        (
            {"federation": {"wire": "int8"}},
            "federation.wire = 'int8' changes each update after it was clipped, and privacy.trust = 'distributed' "
            "counts on clipped ones; allowed: float32",
        ),
        (
            {"evaluation": {"where": "clients"}},
            "evaluation.where = 'clients' would release counts of single clients, which are what is protected; with "
            "privacy.unit = 'client' allowed: server, none",
        ),
        (
            {"privacy": {"unprotected": ["train-loss"]}},
            "privacy.unprotected = ['train-loss'] says of one client what a secure sum hides; with "
            "privacy.trust = 'distributed' allowed: []",
        ),
        (
            {"federation": {"strategy": "krum"}},
            "federation.strategy = 'krum' needs every single update, which privacy.trust = 'distributed' hides",
        ),
        ({"federation": {"weighting": "examples"}}, "under privacy allowed: uniform"),
        ({"secure_sum": {"clients": 2}}, "a secure sum over 2 clients hides too little; allowed: 3 clients or more"),
        (
            {"data": {"partition": {"kind": "natural", "column": "site"}}},
            "secure_sum.clients: give the number of clients in a cohort, which neither federation.cohort nor "
            "data.partition tells",
        ),
        (
            {"federation": {"cohort": {"sampling": "fixed", "size": 6}}, "secure_sum": {"clients": 7}},
            "secure_sum.clients = 7 is not federation.cohort.size = 6; remove secure_sum.clients",
        ),
        (
            {"secure_sum": {"honest": 0.8, "corrupt": 0.3}},
            "secure_sum.honest = 0.8 and secure_sum.corrupt = 0.3 are 8 and 3 clients, more than the 10 of a cohort; "
            "lower one of them",
        ),
        *(
            (
                {"secure_sum": {name: 64}},
                f"secure_sum.{name} stand in a resolved plan".replace(f"secure_sum.{name} ", ""),
            )
            for name in COMPUTED
        ),
    ],
)
def test_what_can_not_be_added_up_in_secret_is_refused_with_a_reason(
    sections: dict[str, dict[str, Any]], reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(**sections)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("honest", 0.0),
        ("honest", 1.1),
        ("corrupt", -0.1),
        ("corrupt", 1.0),
        ("noise", "gaussian"),
        ("spare_rounds", -1),
        ("phase_timeout", 0.0),
        ("clients", 0),
        ("bits", 16),
        ("neighbours", 3),
    ],
)
def test_a_key_out_of_range_is_refused_where_it_stands(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"secure_sum\.{key}"):
        plan_of(secure_sum={key: value})


# --- numbers of clients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sections", "clients", "parts"),
    [
        ({}, 10, (5, 1)),
        ({"secure_sum": {"clients": 7}}, 7, (4, 1)),
        ({"federation": {"cohort": {"sampling": "fixed", "size": 9}}}, 9, (5, 1)),
        ({"secure_sum": {"clients": 30, "honest": 0.7}}, 30, (21, 3)),  # 0.7 x 30 is 21 and not a little more
        ({"secure_sum": {"clients": 30, "corrupt": 0.11}}, 30, (15, 4)),
        ({"secure_sum": {"corrupt": 0.0}}, 10, (5, 0)),
        ({"secure_sum": {"honest": 1e-9, "corrupt": 1e-9}}, 10, (1, 1)),  # rounded up
    ],
)
def test_parts_of_a_cohort_are_rounded_up(
    sections: dict[str, dict[str, Any]], clients: int, parts: tuple[int, int]
) -> None:
    plan = plan_of(**sections)
    assert cohort_size(plan) == clients
    assert honest_and_corrupt(plan) == parts


def test_a_smaller_cohort_needs_as_many_honest_clients() -> None:
    plan = plan_of()
    whole, smaller = plan.secure_parameters(), plan.secure_parameters(8)
    assert (whole.cohort, smaller.cohort) == (10, 8)
    assert (whole.honest, whole.corrupt) == (smaller.honest, smaller.corrupt) == (5, 1)
    assert smaller.least >= smaller.honest + smaller.corrupt
    with pytest.raises(ValueError, match="11 clients are more than the 10"):
        plan.secure_parameters(11)
    with pytest.raises(ValueError, match="honest"):
        plan.secure_parameters(5)


# --- what resolving writes out -------------------------------------------------------------------------------------


KINDS = {"rounded-gaussian": RoundedGaussianSum, "discrete-gaussian": DiscreteGaussianSum, "skellam": SkellamSum}


@pytest.mark.parametrize("noise", KINDS)
def test_the_noise_of_the_honest_is_what_the_plan_says(noise: str) -> None:
    plan = resolve(plan_of(secure_sum={"noise": noise}, privacy={"clipping_norm": 0.3}))
    secure, release = plan.secure, plan.train_release()
    assert isinstance(release, KINDS[noise])
    assert secure.dimension == release.dimension == 160
    assert secure.grid is not None
    assert secure.noise_share == release.noise_share
    # Five shares, in the update's own unit, over the clipping norm.
    assert release.noise_share * math.sqrt(5) * secure.grid / 0.3 == pytest.approx(2.0, rel=1e-12)
    assert release.l2_sensitivity * secure.grid == 0.3
    assert (release.honest, release.sample_rate, release.releases) == (5, 1.0, 1)


def test_the_ring_holds_the_sum_of_the_whole_cohort() -> None:
    plan = resolve(plan_of())
    grid = plan.sum_grid()
    assert plan.secure.bits == 32
    assert 10 * grid.bound < 2**31
    wide = plan_of(secure_sum={"clients": 200_000})
    assert computed(wide, dimension=160)["bits"] == 64
    assert 200_000 * sum_grid(wide, dimension=160).bound >= 2**31
    skellam = resolve(plan_of(secure_sum={"noise": "skellam"})).sum_grid()
    assert skellam.bound == skellam.steps + skellam_largest(skellam.noise_share)


def test_a_resolved_plan_stays_as_it_is() -> None:
    for sections in ({}, {"secure_sum": {"rotation": True}}, {"privacy": {"noise_multiplier": None, "epsilon": 4.0}}):
        once = resolve(plan_of(**sections))
        assert all(value is not None for value in once.secure.computed.values())
        assert resolve(once) == once
        again = parse_plan(write_plan(once), where="plan.toml")
        assert again == once
        assert again.digest() == once.digest() != plan_of(**sections).digest()


@pytest.mark.parametrize(
    ("key", "value"), [("dimension", 161), ("grid", 1e-3), ("noise_share", 5000.0), ("bits", 64), ("honest", 0.4)]
)
def test_a_resolved_plan_can_not_promise_other_noise_than_it_has(key: str, value: Any) -> None:
    found = resolve(plan_of()).model_dump()
    found["secure_sum"][key] = value
    with pytest.raises(UsageError, match=r"secure_sum\.dimension"):
        resolve(plan_from(found, where="plan"))


def test_an_override_computes_anew() -> None:
    found = resolve(plan_of()).model_dump(exclude_none=True)
    plan = resolve(plan_from(found, where="plan", overrides=["secure_sum.clients=20"]))
    assert plan == resolve(plan_of(secure_sum={"clients": 20}))


def test_a_turned_update_is_padded() -> None:
    plan = plan_of(secure_sum={"rotation": True})
    assert [added_up(plan, n) for n in (1, 2, 3, 160, 256)] == [1, 2, 4, 256, 256]
    assert resolve(plan_of(secure_sum={"rotation": True})).secure.dimension == 256


@pytest.mark.parametrize("noise", ["discrete-gaussian", "skellam"])
def test_noise_that_no_grid_can_carry_is_refused(noise: str) -> None:
    with pytest.raises(UsageError, match=r"noise_multiplier.* out of range: the grid would be too coarse"):
        resolve(plan_of(privacy={"noise_multiplier": 2.0**19}, secure_sum={"noise": noise}))


def test_noise_without_a_table_fits_a_grid_at_any_multiplier() -> None:
    plan = resolve(plan_of(privacy={"noise_multiplier": 2.0**19}))
    assert plan.secure.noise == "rounded-gaussian"
    assert plan.sum_grid().noise_share > 2**16


def test_a_cohort_that_can_not_add_up_in_secret_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(**asked: Any) -> None:
        raise ValueError(f"nothing fits {sorted(asked)}")

    monkeypatch.setattr("security.secure_sum.parameters.parameters_for", nothing)
    with pytest.raises(UsageError, match=r"^secure_sum: nothing fits \['cohort', 'corrupt', 'honest'\]"):
        resolve(plan_of())


# --- epsilon -------------------------------------------------------------------------------------------------------


def test_the_target_is_met_with_the_least_noise() -> None:
    plan = resolve(plan_of(privacy={"noise_multiplier": None, "epsilon": 4.0}))
    noise = plan.privacy.noise_multiplier
    assert noise is not None
    assert plan.privacy.calibrated_from == "epsilon"
    assert planned_epsilon(plan) <= 4.0
    less = resolve(plan_of(privacy={"noise_multiplier": noise - 1e-4}))
    assert planned_epsilon(less) > 4.0


def test_rule_2_spare_attempts_are_planned_and_paid_for() -> None:
    plan = resolve(plan_of(secure_sum={"spare_rounds": 3}))
    release = plan.train_release()
    assert release is not None
    assert [dict(releases) for releases in plan.terms().rounds] == [{release: 1}] * 7
    assert planned_epsilon(plan) == epsilon({release: 7}, plan.privacy.delta).epsilon
    assert plan.privacy.epsilon is not None
    assert plan.privacy.epsilon > (resolve(plan_of()).privacy.epsilon or math.inf)
    tight = resolve(plan_of(secure_sum={"spare_rounds": 3}, privacy={"noise_multiplier": None, "epsilon": 4.0}))
    assert planned_epsilon(tight) <= 4.0


def test_rule_3_a_part_of_the_clients_is_charged_like_all() -> None:
    """Who takes part is known: no amplification by sampling."""
    part = resolve(
        plan_of(
            data={"partition": {"kind": "iid", "clients": 100}},
            federation={"cohort": {"sampling": "fixed", "size": 10}},
        )
    )
    assert planned_epsilon(part) == planned_epsilon(resolve(plan_of()))


def test_a_promise_that_the_noise_does_not_keep_is_refused() -> None:
    found = resolve(plan_of()).model_dump()
    found["privacy"]["epsilon"] *= 0.99
    with pytest.raises(UsageError, match=r"privacy\.epsilon = .*gives"):
        resolve(plan_from(found, where="plan"))


def test_plans_without_secure_sums_keep_the_digest_that_they_had() -> None:
    """Approvals and resumed runs go by it."""
    assert "secure_sum" in Plan().model_dump()
    assert Plan().digest() == "abd4195f3669a00228507ae1751fa2da6158c5892b2216d093f4095207df1a17"


def test_masks_count_in_a_digest_only_where_they_are_missing() -> None:
    """A plan from before they could be left out keeps its digest; one that leaves them out has another."""
    with_masks, without = (resolve(plan_of(secure_sum={"masks": masks})) for masks in (True, False))
    assert with_masks.secure.masks
    assert with_masks.digest() == resolve(plan_of()).digest()
    assert '"masks"' not in digested(with_masks)
    assert '"masks":false' in digested(without)
    assert without.digest() != with_masks.digest()
    assert without.train_release() == with_masks.train_release()


# --- joint steps: clipped gradients of records ---------------------------------------------------------------------


def joint(**sections: dict[str, Any]) -> Plan:
    """A plan for joint steps on all records, unless it says otherwise."""
    privacy = {"unit": "example", **sections.pop("privacy", {})}
    training = {"sample_rate": 1.0, **sections.pop("training", {})}
    return plan_of(privacy=privacy, training=training, **sections)


def people(most: int, **sections: dict[str, Any]) -> Plan:
    return joint(data={"person_column": "who", "max_rows_per_person": most}, **sections)


JOINT = "with privacy.unit = 'example' and privacy.trust = 'distributed'"
SERVER = f"{JOINT} the server takes the step: give federation.strategy, such as 'fedavgm' or 'fedadam', its options; "


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"training": {"optimizer": "adam"}}, f"training.optimizer = 'adam': {SERVER}remove it"),
        ({"training": {"momentum": 0.9}}, f"training.momentum = 0.9: {SERVER}remove it"),
        ({"training": {"betas": [0.5, 0.9]}}, f"training.betas = (0.5, 0.9): {SERVER}remove it"),
        ({"training": {"weight_decay": 0.1}}, f"training.weight_decay = 0.1: {SERVER}remove it"),
        ({"training": {"proximal_mu": 0.1}}, f"training.proximal_mu = 0.1: {SERVER}remove it"),
        ({"training": {"epochs": 1}}, "training.epochs"),
        ({"training": {"steps": 2}}, f"training.steps = 2: {JOINT} a round is one step; allowed: 1"),
        (
            {"secure_sum": {"noise": "skellam"}},
            f"secure_sum.noise = 'skellam': {JOINT} allowed: rounded-gaussian",
        ),
        (
            {"secure_sum": {"noise": "discrete-gaussian"}},
            f"secure_sum.noise = 'discrete-gaussian': {JOINT} allowed: rounded-gaussian",
        ),
        ({"secure_sum": {"rotation": True}}, f"secure_sum.rotation = true: {JOINT} it helps nothing; allowed: false"),
        (
            {
                "training": {"sample_rate": 0.5},
                "data": {"person_column": "who", "max_rows_per_person": 3},
            },
            f"training.sample_rate = 0.5 with data.max_rows_per_person = 3: {JOINT} a person's records are not sampled "
            "one by one; allowed: sample_rate = 1, all records in each step",
        ),
        (
            {"federation": {"cohort": {"sampling": "poisson", "rate": 0.5}}},
            "clients of a secure sum know who takes part",
        ),
        ({"privacy": {"unprotected": ["train-loss"]}}, "says of one client what a secure sum hides"),
        ({"federation": {"strategy": "krum"}}, "needs every single update"),
        ({"federation": {"wire": "float16"}}, "with privacy.trust = 'distributed' allowed: float32"),
    ],
)
def test_what_a_joint_step_can_not_do_is_refused_with_a_reason(
    sections: dict[str, dict[str, Any]], reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        joint(**sections)
    assert reason in str(caught.value)


@pytest.mark.parametrize("steps", [None, 1])
def test_a_joint_round_is_one_step(steps: int | None) -> None:
    plan = resolve(joint(training={"steps": steps} if steps else {}))
    assert plan.is_joint
    assert plan.training.steps == plan.training.local_steps == 1
    assert resolve(plan) == plan
    again = parse_plan(write_plan(plan), where="plan.toml")
    assert again == plan
    assert again.digest() == plan.digest()
    for other in (Plan(), plan_of(), plan_of(privacy={"unit": "example", "trust": "local"})):
        assert not other.is_joint


def test_clients_may_judge_the_model_and_pay_for_it() -> None:
    """Counts of a client have noise of their own: what they cost is in the plan's epsilon."""
    plan = resolve(joint(evaluation={"where": "clients", "every": 1}))
    counts, release = plan.evaluate_release(), plan.train_release()
    assert counts is not None
    assert release is not None
    assert planned_epsilon(plan) == epsilon({release: 4, counts: 4}, plan.privacy.delta).epsilon
    assert planned_epsilon(plan) > epsilon({release: 4}, plan.privacy.delta).epsilon


def test_rule_4_joint_steps_cost_what_one_gaussian_of_all_honest_noise_costs() -> None:
    plan = resolve(joint())
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    assert (release.honest, release.sample_rate, release.dimension) == (5, 1.0, 160)
    assert release.noise_multiplier == pytest.approx(2.0, rel=1e-12)
    one = epsilon([Gaussian(noise_multiplier=2.0, releases=4)], plan.privacy.delta).epsilon
    assert planned_epsilon(plan) == pytest.approx(one, rel=1e-6)
    assert plan.privacy.epsilon == pytest.approx(one, abs=2e-6)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_sampled_joint_steps_cost_what_steps_of_dp_sgd_cost(rate: float) -> None:
    plan = resolve(joint(training={"sample_rate": rate}, federation={"rounds": 50}))
    steps = DpSgd(noise_multiplier=2.0, sample_rate=rate, steps=50)
    assert planned_epsilon(plan) == pytest.approx(epsilon([steps], plan.privacy.delta).epsilon, abs=1e-3)
    assert planned_epsilon(plan) < planned_epsilon(resolve(joint(federation={"rounds": 50})))


@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_the_target_of_joint_steps_is_met_with_the_least_noise(rate: float) -> None:
    plan = resolve(joint(privacy={"noise_multiplier": None, "epsilon": 4.0}, training={"sample_rate": rate}))
    noise = plan.privacy.noise_multiplier
    assert noise is not None
    assert planned_epsilon(plan) <= 4.0
    less = resolve(joint(privacy={"noise_multiplier": noise * 0.999}, training={"sample_rate": rate}))
    assert planned_epsilon(less) > 4.0
    assert resolve(plan) == plan


def test_rule_6_all_records_of_a_person_are_in_the_price() -> None:
    """The grid's noise is for one record; a person with three moves the sum by three clipping norms, rounded once."""
    plan = resolve(people(3))
    grid, release = plan.sum_grid(), plan.train_release()
    assert isinstance(grid, ExampleSumGrid)
    assert isinstance(release, RoundedGaussianSum)
    assert release.records_per_unit == 3
    assert release.l2_sensitivity == grid.sensitivity(3) == pytest.approx(3 * grid.steps, rel=1e-3)
    assert release.noise_share == grid.noise_share == sum_grid(resolve(joint())).noise_share
    assert sum_release(plan, records=1) == resolve(joint()).train_release()
    assert planned_epsilon(plan) > 2.5 * planned_epsilon(resolve(joint()))


def test_rule_6_a_target_for_persons_takes_that_much_more_noise() -> None:
    target = {"noise_multiplier": None, "epsilon": 4.0}
    one, three = (resolve(plan).privacy for plan in (joint(privacy=dict(target)), people(3, privacy=dict(target))))
    assert one.noise_multiplier is not None
    assert three.noise_multiplier is not None
    assert 2.99 < three.noise_multiplier / one.noise_multiplier <= 3


def test_one_record_each_may_be_sampled() -> None:
    plan = resolve(people(1, training={"sample_rate": 0.1}))
    assert planned_epsilon(plan) == planned_epsilon(resolve(joint(training={"sample_rate": 0.1})))


def test_rule_9_the_ring_of_joint_steps_holds_every_sum() -> None:
    plan = resolve(joint(training={"expected_batch_size": 144}))
    grid, secure = plan.sum_grid(), plan.secure
    assert isinstance(grid, ExampleSumGrid)
    assert secure.computed == {"dimension": 160, "grid": grid.step, "noise_share": grid.noise_share, "bits": 32}
    assert grid.most == 144 * grid.steps
    assert 10 * grid.bound < 2**31


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("secure_sum", "dimension", 161),
        ("secure_sum", "grid", 1e-3),
        ("secure_sum", "noise_share", 5000.0),
        ("secure_sum", "bits", 64),
        ("secure_sum", "honest", 0.4),
        ("training", "expected_batch_size", 10**6),
    ],
)
def test_a_resolved_joint_plan_can_not_promise_other_noise_than_it_has(table: str, key: str, value: Any) -> None:
    found = resolve(joint()).model_dump()
    found[table][key] = value
    with pytest.raises(UsageError, match=r"secure_sum\.dimension"):
        resolve(plan_from(found, where="plan"))


def test_rule_7_the_network_of_a_joint_plan_is_checked_and_that_of_client_level_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise UsageError("it mixes examples")

    monkeypatch.setattr("shared_models.private_trainable.check_private_trainable", refuse)
    resolve(plan_of())
    with pytest.raises(UsageError, match="it mixes examples"):
        resolve(joint())


def test_an_unresolved_joint_plan_has_no_price() -> None:
    with pytest.raises(ValueError, match="not resolved"):
        joint().train_release()
    with pytest.raises(ValueError, match="not resolved"):
        joint(privacy={"noise_multiplier": None, "epsilon": 1.0}).sum_grid()
