"""Plans with correlated noise: one release a run, a matrix that everybody computes, a schema that cohorts can keep."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from privacy.accountant import ACCOUNTANT, accountant_of, epsilon
from privacy.factorisation import sensitivity
from privacy.mechanisms import BandedFactorisation, Gaussian
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_central import central_grid
from shared_models.plan_correlated import banded_noise, matrix_of, participation_of, server_momentum
from shared_models.plan_file import parse_plan, plan_from, write_plan
from shared_models.resolve import planned_epsilon, resolve

FIXED = {"sampling": "fixed", "size": 10}


def plan_of(table: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Plan:
    raw: dict[str, Any] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 40}},
        "privacy": {
            "unit": "client",
            "trust": "central",
            "epsilon": 3.0,
            "correlated": {"band": 4} if table is None else table,
        },
        "federation": {"rounds": 10, "cohort": FIXED},
    }
    for name, keys in changes.items():
        raw[name] = {**raw.get(name, {}), **keys}
    return plan_from(raw, where="test")


def test_a_resolved_plan_writes_out_schema_and_matrix_and_resolves_to_itself() -> None:
    found = resolve(plan_of())
    table = found.privacy.correlated
    assert table is not None
    assert (table.band, table.separation, table.participations) == (4, 4, 3)
    assert table.factorisation == matrix_of(found).digest
    assert resolve(found) == found
    assert parse_plan(write_plan(found), where="test") == found


def test_the_whole_run_is_one_release_of_a_gaussian() -> None:
    found = resolve(plan_of())
    release = found.train_release()
    assert isinstance(release, BandedFactorisation)
    assert found.planned_trainings() == Counter({release: 1})
    assert found.terms().rounds == (((release, 1),),)
    one = Gaussian(noise_multiplier=release.noise_multiplier)
    assert planned_epsilon(found) == epsilon([release], 1e-5).epsilon == epsilon([one], 1e-5).epsilon
    assert accountant_of([release]) == ACCOUNTANT
    less = release.with_noise_multiplier(release.noise_multiplier - 1e-4)
    assert epsilon([release], 1e-5).epsilon <= 3.0 < epsilon([less], 1e-5).epsilon


def test_nothing_is_claimed_from_chance() -> None:
    found = resolve(plan_of())
    assert (found.has_secret_cohorts, found.is_paid_at_once) == (False, True)


def test_the_price_is_that_of_the_noise_that_is_drawn() -> None:
    """Deviation of z over what one client moves, in steps of the grid, is the noise multiplier."""
    found = resolve(plan_of())
    noise = banded_noise(found, 650)
    moved = sensitivity(matrix_of(found), participation_of(found)) * 2**10 * noise.grid.steps
    assert noise.grid.noise_scale / moved == pytest.approx(found.privacy.noise_multiplier, rel=1e-9)
    assert noise.grid.noise_scale >= moved * (found.privacy.noise_multiplier or 0)
    assert noise.release() == found.train_release()
    assert central_grid(found, 650) == noise.grid


@pytest.mark.parametrize(
    ("strategy", "options", "momentum"),
    [
        ("fedavg", {}, 0.0),
        ("fedavgm", {}, 0.0),
        ("fedavgm", {"server_momentum": 0.9}, 0.9),
        ("fedavgm", {"server_momentum": 0}, 0.0),
        ("fedavgm", {"server_momentum": 1.5}, 0.0),
        ("fedadam", {"eta": 0.1}, 0.0),
    ],
)
def test_the_matrix_is_made_for_the_servers_momentum(strategy: str, options: dict[str, Any], momentum: float) -> None:
    found = plan_of(federation={"strategy": strategy, "strategy_options": options})
    assert server_momentum(found) == momentum
    assert (matrix_of(found).digest == matrix_of(plan_of()).digest) == (momentum == 0)


def test_one_band_is_independent_noise_under_the_same_schema() -> None:
    """Priced as each client's participations one after the other: sqrt(k) times the noise a round."""
    one, four = resolve(plan_of({"band": 1, "separation": 4})), resolve(plan_of())
    assert one.privacy.noise_multiplier == four.privacy.noise_multiplier
    each = banded_noise(one, 650).grid
    of_a_round = each.noise_scale / 2**10 / each.steps
    assert of_a_round == pytest.approx((one.privacy.noise_multiplier or 0) * 3**0.5, rel=1e-3)
    assert epsilon([Gaussian(noise_multiplier=of_a_round)] * 3, 1e-5).epsilon == pytest.approx(3.0, rel=2e-3)


@pytest.mark.parametrize(
    ("table", "changes", "reason"),
    [
        ({}, {}, r"privacy\.correlated\.band: missing"),
        ({"band": 5}, {}, r"needs a population of 50 clients, there are 40"),
        ({"band": 4, "separation": 5}, {}, r"needs a population of 50 clients, there are 40"),
        ({"band": 4, "separation": 3}, {}, r"band = 4: allowed: at most privacy\.correlated\.separation = 3"),
        ({"band": 11}, {"federation": {"cohort": {"sampling": "fixed", "size": 1}}}, r"and federation\.rounds = 10"),
        ({"band": 4}, {"federation": {"cohort": {"sampling": "poisson", "rate": 0.1}}}, r"allowed: fixed"),
        ({"band": 4}, {"federation": {"cohort": {"sampling": "all"}}}, r"allowed: fixed"),
        ({"band": 4}, {"privacy": {"adaptive": {}}}, r"remove one of the two tables"),
        ({"band": 4}, {"privacy": {"trust": "distributed"}}, r"belongs to privacy\.trust = 'central'.*'distributed'"),
        ({"band": 4}, {"privacy": {"unit": "example", "trust": "local"}}, r"belongs to privacy\.trust = 'central'"),
        ({"band": 4}, {"federation": {"rounds": 2001}}, r"federation\.rounds = 2001.*at most 2000"),
        ({"band": 4, "participations": 2}, {}, r"stand in a resolved plan and are computed"),
        ({"band": 4, "factorisation": "ab" * 32}, {}, r"stand in a resolved plan and are computed"),
        ({"band": 4, "factorisation": "short"}, {}, r"privacy\.correlated\.factorisation"),
    ],
)
def test_what_no_cohorts_could_keep_to_is_refused(
    table: dict[str, Any], changes: dict[str, dict[str, Any]], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve(plan_of(table, **changes))


@pytest.mark.parametrize("key", ["participations", "factorisation"])
def test_a_resolved_plan_can_not_promise_another_matrix_or_schema(key: str) -> None:
    raw = resolve(plan_of()).model_dump()
    raw["privacy"]["correlated"][key] = 2 if key == "participations" else "cd" * 32
    with pytest.raises(UsageError, match="are computed; remove them"):
        plan_from(raw, where="test")


def test_an_override_computes_anew() -> None:
    raw = resolve(plan_of()).model_dump(exclude_none=True)
    found = resolve(plan_from(raw, where="test", overrides=["federation.rounds=8"]))
    assert found == resolve(plan_of({"band": 4, "separation": 4}, federation={"rounds": 8}))


def test_noise_that_no_grid_can_carry_is_refused() -> None:
    with pytest.raises(UsageError, match=r"privacy\.noise_multiplier: .* the grid would be too coarse"):
        resolve(plan_of(privacy={"epsilon": None, "noise_multiplier": 2.0**19}))
