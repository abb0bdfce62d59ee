"""Plans whose clipping norm adapts: the price of a fixed norm, one number more in a sum, bounds that are public."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from privacy.accountant import epsilon
from privacy.adaptive_clipping import absent, joint
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_adaptive import (
    adapts_within_rounds,
    after_round,
    clipping_of,
    is_adaptive,
    may_be_norm,
    split_of,
    summed_values,
    update_noise,
)
from shared_models.plan_central import central_grid
from shared_models.plan_file import parse_plan, plan_from, write_plan
from shared_models.resolve import resolve

TRAINED = 650  # values of the network below
POISSON = {"sampling": "poisson", "rate": 0.25}


def document(**changes: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 40}},
        "privacy": {"unit": "client", "trust": "central", "epsilon": 3.0, "clipping_norm": 0.5, "adaptive": {}},
        "federation": {"rounds": 5, "cohort": POISSON},
    }
    for table, keys in changes.items():
        raw[table] = {**raw.get(table, {}), **keys}
    return raw


def plan_of(**changes: dict[str, Any]) -> Plan:
    return plan_from(document(**changes), where="test")


def adaptive(**keys: Any) -> dict[str, Any]:
    return {"privacy": {**document()["privacy"], "adaptive": keys}}


DISTRIBUTED: dict[str, Any] = {
    "privacy": {**document()["privacy"], "trust": "distributed"},
    "federation": {"rounds": 5, "cohort": {"sampling": "all"}},
}


def test_a_resolved_plan_writes_out_every_constant_and_resolves_to_itself() -> None:
    found = resolve(plan_of())
    table = found.privacy.adaptive
    assert table is not None
    noise = found.privacy.noise_multiplier
    assert noise is not None
    assert (table.quantile, table.rate, table.least_norm, table.most_norm) == (0.5, 0.2, 0.0005, 500.0)
    assert table.count_noise == max(10 / 20, noise / 0.6)  # of an expected cohort of 10
    assert resolve(found) == found
    assert parse_plan(write_plan(found), where="test") == found


@pytest.mark.parametrize("changes", [{}, DISTRIBUTED], ids=["central", "distributed"])
def test_it_costs_what_a_fixed_norm_costs(changes: dict[str, Any]) -> None:
    raw = document(**changes)
    fixed = resolve(plan_from({**raw, "privacy": {**raw["privacy"], "adaptive": None}}, where="test"))
    found = resolve(plan_of(**changes))
    assert found.privacy.noise_multiplier == fixed.privacy.noise_multiplier
    assert 2.9 < epsilon(found.planned_trainings(), 1e-5).epsilon <= 3.0


def test_the_noise_on_updates_is_more_for_what_the_bits_take() -> None:
    """Theorem 1 of Andrew et al. 2021."""
    found = resolve(plan_of())
    z, sigma = found.privacy.noise_multiplier, clipping_of(found).count_noise
    assert z is not None
    assert update_noise(found) == pytest.approx((z**-2 - (2 * sigma) ** -2) ** -0.5)
    assert z < update_noise(found) < 1.05 * z


def test_sums_have_one_number_more_on_a_grid_of_norm_1_that_no_norm_changes() -> None:
    one, other = resolve(plan_of()), resolve(plan_of(privacy={**document()["privacy"], "clipping_norm": 30.0}))
    assert summed_values(one, TRAINED) == TRAINED + 1
    assert central_grid(one, TRAINED) == central_grid(other, TRAINED)
    assert central_grid(one, TRAINED).clipping_norm == 1.0
    summed = resolve(plan_of(**DISTRIBUTED))
    assert (summed.secure.dimension, summed.sum_grid().clipping_norm) == (TRAINED + 1, 1.0)
    turned = resolve(plan_of(**DISTRIBUTED, secure_sum={"rotation": True}))
    assert turned.secure.dimension == 1024


@pytest.mark.parametrize(
    ("norm", "number", "allowed"),
    [
        (0.5, 1, True),
        (0.6, 1, False),
        (0.6, 2, True),
        (0.0005, 2, True),
        (500.0, 5, True),
        (500.1, 2, False),
        (0.0004, 2, False),
        (math.nan, 2, False),
        (math.inf, 2, False),
        (-0.5, 2, False),
        (1, 2, False),
        ("0.5", 2, False),
        (None, 2, False),
        (True, 2, False),
    ],
)
def test_a_server_may_name_no_other_norms_than_the_plan_allows(norm: object, number: int, allowed: bool) -> None:
    assert may_be_norm(resolve(plan_of()), norm, round_number=number) is allowed


@pytest.mark.parametrize(("lengths", "factor"), [([0.1] * 10, -0.1), ([9.0] * 10, 0.1), ([], 0.0)])
def test_the_next_norm_and_the_mean_follow_from_what_a_round_released(lengths: list[float], factor: float) -> None:
    """All short: down by exp(-rate (1 - quantile)); all long: up; nobody: it stays, for absent ones count as half."""
    found = resolve(plan_of())
    direction = np.zeros(TRAINED)
    direction[0] = 1.0
    total = sum((joint(length * direction, 0.5, split_of(found)) for length in lengths), absent(TRAINED))
    mean, norm = after_round(found, (total / 10).astype(np.float32), 0.5, round_number=2)
    assert norm == pytest.approx(0.5 * math.exp(factor), rel=1e-5)
    expected = sum(min(length, 0.5) for length in lengths) / 10
    assert mean.dtype == np.float32
    assert mean[0] == pytest.approx(expected, rel=1e-5)
    assert not mean[1:].any()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {
                "privacy": {"adaptive": {}, "epsilon": 3.0, "unit": "example", "trust": "distributed"},
                "federation": {"cohort": {"sampling": "all"}},
            },
            r"privacy\.adaptive with privacy\.unit = 'example' .* needs privacy\.trust = 'local', not 'distributed'",
        ),
        (
            {
                "privacy": {
                    "adaptive": {},
                    "epsilon": 3.0,
                    "unit": "example",
                    "trust": "local",
                    "clipping": "per-layer",
                },
                "federation": {"cohort": {"sampling": "all"}},
            },
            r"privacy\.clipping = 'per-layer': .*allowed: flat",
        ),
        ({"federation": {"wire": "float16", "cohort": POISSON}}, r"federation\.wire = 'float16'.*allowed: float32"),
        (adaptive(least_norm=0.6), r"least_norm = 0\.6 is above privacy\.clipping_norm = 0\.5"),
        (adaptive(most_norm=0.4), r"most_norm = 0\.4 is below privacy\.clipping_norm = 0\.5"),
        (adaptive(quantile=1.0), r"privacy\.adaptive\.quantile"),
        (adaptive(rate=0.0), r"privacy\.adaptive\.rate"),
        (adaptive(count_noise=0.1), r"count_noise = 0\.1 is too little for privacy\.noise_multiplier"),
        (adaptive(least_norm=1e-12), r"privacy\.adaptive\.least_norm"),
        (adaptive(quantil=0.3), r"privacy\.adaptive\.quantil"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve(plan_of(**changes))


def test_one_for_gradients_takes_its_constants_from_the_batch_and_costs_nothing_more() -> None:
    local = {"unit": "example", "trust": "local", "epsilon": None, "noise_multiplier": 2.0}
    changes = {"federation": {"cohort": {"sampling": "all"}}, "training": {"expected_batch_size": 100}}
    found = resolve(plan_of(privacy=local, **changes))
    fixed = resolve(plan_of(privacy={**local, "adaptive": None}, **changes))
    assert not is_adaptive(found)  # between rounds
    assert adapts_within_rounds(found)
    assert found.privacy.adaptive is not None
    assert found.privacy.adaptive.count_noise == pytest.approx(5.0)
    assert found.train_release() == fixed.train_release()
    assert found.privacy.epsilon == fixed.privacy.epsilon


def test_plans_without_privacy_lose_the_table() -> None:
    found = resolve(plan_of(privacy={"trust": "none", "adaptive": {}}))
    assert found.privacy.adaptive is None


def test_a_plan_without_the_table_keeps_its_digest() -> None:
    """Plans from before there was any; written down then."""
    old = plan_from({"privacy": {"epsilon": 3.0}}, where="test")
    text = old.model_dump(mode="json")["privacy"]
    assert (text["adaptive"], text["correlated"]) == (None, None)
    assert old.digest() == OLD_DIGEST
    assert plan_of().digest() != plan_of(**adaptive(rate=0.3)).digest()


OLD_DIGEST = "38e3ad29b3475cc34cae8b10a15bb2cd74890b907c303b3835f95317d0c3f916"
