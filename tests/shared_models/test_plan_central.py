"""Plans of a trusted server: public numbers to divide by, the price of each kind of cohort, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import ClientLevel
from privacy.neighbours import Neighbours
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_central import central_grid, expected_cohort, population_of
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve

COHORTS: dict[str, dict[str, Any]] = {
    "poisson": {"sampling": "poisson", "rate": 0.25},
    "fixed": {"sampling": "fixed", "size": 10},
    "all": {"sampling": "all"},
}


def central(**changes: dict[str, Any]) -> dict[str, Any]:
    raw: dict[str, Any] = {
        "model": {"name": "mlp", "options": {"hidden": []}},
        "data": {"partition": {"kind": "iid", "clients": 40}},
        "privacy": {"unit": "client", "trust": "central", "epsilon": 3.0},
        "federation": {"rounds": 5, "cohort": COHORTS["poisson"]},
    }
    for table, keys in changes.items():
        raw[table] = {**raw.get(table, {}), **keys}
    return raw


def plan(**changes: dict[str, Any]) -> Plan:
    return plan_from(central(**changes), where="test")


@pytest.mark.parametrize(
    ("kind", "price", "expected", "secret"),
    [
        ("poisson", {"cohort": "poisson", "rate": 0.25}, 10.0, True),
        ("fixed", {"cohort": "fixed", "size": 10, "of": 40}, 10.0, True),
        ("all", {"cohort": "full"}, 40.0, False),
    ],
)
def test_each_kind_of_cohort_has_its_price_and_a_public_number_to_divide_by(
    kind: str, price: dict[str, Any], expected: float, secret: bool
) -> None:
    found = resolve(plan(federation={"cohort": COHORTS[kind]}))
    noise = found.privacy.noise_multiplier
    assert noise is not None
    assert found.train_release() == ClientLevel(noise_multiplier=noise, **price)
    assert (expected_cohort(found), found.has_secret_cohorts) == (expected, secret)


@pytest.mark.parametrize("kind", sorted(COHORTS))
def test_the_noise_is_the_least_that_keeps_the_promise(kind: str) -> None:
    found = resolve(plan(federation={"cohort": COHORTS[kind]}))
    release = found.train_release()
    assert isinstance(release, ClientLevel)
    assert found.privacy.epsilon == 3.0
    less = release.with_noise_multiplier(release.noise_multiplier - 1e-4)
    assert epsilon({release: 5}, 1e-5).epsilon <= 3.0 < epsilon({less: 5}, 1e-5).epsilon


def test_a_fixed_cohort_is_about_replacing_a_client_and_only_rdp_prices_it() -> None:
    found = resolve(plan(federation={"cohort": COHORTS["fixed"]}))
    release = found.train_release()
    assert isinstance(release, ClientLevel)
    assert release.relation is Neighbours.REPLACE_ONE
    spent = epsilon({release: 5}, 1e-5)
    assert (spent.relation, spent.accountant) == ("replace one unit", "RDP, orders 1.1 to 1024")


def test_a_resolved_plan_writes_the_population_out_and_resolves_to_itself() -> None:
    found = resolve(plan())
    assert found.federation.population == population_of(found) == 40
    assert resolve(found) == found


def test_the_population_is_part_of_the_digest_where_there_is_one() -> None:
    """Plans without one keep the digest that they had before there was the key."""
    there = plan(data={"partition": {"kind": "natural", "column": "site"}}, federation={"population": 40})
    other = there.federation.model_copy(update={"population": 41})
    assert there.digest() != there.model_copy(update={"federation": other}).digest()
    local = plan_from({"privacy": {"epsilon": 3.0}}, where="test")
    meaning = {key: value for key, value in local.model_dump(mode="json").items() if value is not None}
    del meaning["data"]["path"], meaning["federation"]["population"], meaning["federation"]["asynchronous"]
    del meaning["privacy"]["adaptive"], meaning["privacy"]["correlated"]
    del meaning["privacy"]["clipping"]
    del meaning["data"]["text"], meaning["data"]["normalisation"], meaning["data"]["leave_out"]
    del meaning["model"]["frozen"]
    del meaning["federation"]["model_average"]
    for name in (
        "augment",
        "gradient_checkpointing",
        "dp_engine",
        "precision",
        "company",
        "label_smoothing",
        "class_weights",
    ):
        del meaning["training"][name]
    del meaning["evaluation"]["per_class"]
    text = json.dumps(meaning, sort_keys=True, separators=(",", ":"))
    assert local.digest() == hashlib.sha256(text.encode()).hexdigest()


def test_without_partitions_the_plan_must_say_how_many_clients_there_are() -> None:
    with pytest.raises(UsageError, match=r"federation\.population: give the number of clients"):
        plan(data={"partition": {"kind": "natural", "column": "site"}})
    found = plan(data={"partition": {"kind": "natural", "column": "site"}}, federation={"population": 60})
    assert expected_cohort(found) == 15.0


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"federation": {"population": 41}}, r"federation\.population = 41 is not data\.partition\.clients = 40"),
        ({"evaluation": {"where": "clients"}}, r"evaluation\.where = 'clients' would release counts of single clients"),
        ({"privacy": {"unprotected": ["train-loss"]}}, r"privacy\.unprotected = \['train-loss'\] says of one client"),
        ({"federation": {"wire": "top-k", "top_fraction": 0.1}}, r"federation\.wire = 'top-k' changes each update"),
        ({"federation": {"wire": "int8"}}, r"federation\.wire = 'int8' changes each update"),
        ({"federation": {"strategy": "krum"}}, r"federation\.strategy = 'krum' needs every single update"),
        ({"federation": {"weighting": "examples"}}, r"federation\.weighting = 'examples' would release"),
        ({"privacy": {"unit": "example"}}, r"unit = 'example' with trust = 'central' is not offered"),
        ({"privacy": {"trust": "distributed"}, "federation": {"cohort": COHORTS["all"], "population": 40}}, "belongs"),
    ],
)
def test_what_a_trusted_server_can_not_do_is_refused(changes: dict[str, dict[str, Any]], error: str) -> None:
    with pytest.raises(UsageError, match=error):
        plan(**changes)


def test_a_fixed_cohort_is_no_larger_than_the_population() -> None:
    natural = {"partition": {"kind": "natural", "column": "site"}}
    with pytest.raises(UsageError, match=r"cohort\.size = 10 is more than federation\.population = 9"):
        plan(data=natural, federation={"cohort": COHORTS["fixed"], "population": 9})


def test_so_much_noise_that_no_grid_is_fine_enough_is_refused() -> None:
    with pytest.raises(UsageError, match=r"privacy\.noise_multiplier: .* out of range"):
        resolve(plan(privacy={"epsilon": None, "noise_multiplier": 2.0**20}, model={"options": {"hidden": [2000]}}))


def test_rule_9_the_grid_is_as_long_as_the_clipping_norm() -> None:
    found = resolve(plan(privacy={"clipping_norm": 0.25}))
    grid = central_grid(found, 650)
    noise = found.privacy.noise_multiplier
    assert noise is not None
    assert (grid.step * grid.steps, grid.noise_scale) == (0.25, noise * grid.steps)
