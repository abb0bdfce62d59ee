"""Plans with [statistics]: what they say where they say nothing, what they can't mean, and what they cost."""

from __future__ import annotations

import math
from typing import Any

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import NoisyHistograms, RoundedGaussianSum
from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan, plan_from, write_plan
from shared_models.plan_statistics import count_noise, record_norm
from shared_models.registry import build_for, dry
from shared_models.resolve import resolve
from tests.shared_models.test_histograms import CARD, statistics_plan


def test_one_round_without_evaluation_over_all_records_is_filled_in() -> None:
    plan = statistics_plan()
    assert (plan.federation.rounds, plan.evaluation.where, plan.training.sample_rate) == (1, "none", 1.0)
    assert resolve(plan) == plan
    assert parse_plan(write_plan(plan), where="test") == plan
    assert resolve(parse_plan(write_plan(plan), where="test")).digest() == plan.digest()


def test_the_counts_take_the_place_of_a_network() -> None:
    plan = statistics_plan()
    (name, values), *others = build_for(plan).named_parameters()
    assert (name, tuple(values.shape), others) == ("counts", (17,), [])
    assert not values.detach().any()
    assert dry(plan).get_parameter("counts").device.type == "meta"


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ({"federation": {"rounds": 2}}, r"federation\.rounds"),
        ({"federation": {"strategy": "fedadam"}}, r"federation\.strategy"),
        ({"federation": {"wire": "int8"}}, r"federation\.wire"),
        ({"evaluation": {"where": "server"}}, r"evaluation\.where"),
        ({"evaluation": {"where": "clients"}}, r"evaluation\.where"),
        ({"training": {"sample_rate": 0.5}}, r"training\.sample_rate"),
        ({"training": {"gradient_checkpointing": True}}, r"training\.gradient_checkpointing"),
        ({"federation": {"model_average": 0.9}}, r"federation\.model_average"),
        ({"privacy": {"noise_multiplier": 2.0, "clipping_norm": 0.5}}, r"privacy\.clipping_norm"),
        ({"privacy": {"noise_multiplier": 2.0, "unprotected": ["examples"]}}, r"privacy\.unprotected"),
        ({"privacy": {"trust": "none"}}, "allowed: unit = 'example', trust = 'local' or 'distributed'"),
        ({"privacy": {"trust": "central", "unit": "client", "noise_multiplier": 2.0}}, "allowed: unit = 'example'"),
        ({"privacy": {"trust": "distributed", "unit": "client", "noise_multiplier": 2.0}}, "allowed: unit = 'example'"),
        ({"statistics": {"columns": ["age", "age"]}}, "columns names one twice"),
        ({"statistics": {"edges": {"age": [30.0, 20.0]}}}, r"edges\.age should be 1 to"),
        ({"statistics": {"edges": {"age": []}}}, r"edges\.age should be 1 to"),
        ({"statistics": {"edges": {"age": ["a"]}}}, r"statistics\.edges"),
        ({"statistics": {"bins": 0}}, r"statistics\.bins"),
        ({"statistics": {"columns": []}}, r"statistics\.columns"),
        (
            {"data": {"name": "csv", "path": "x", "card": CARD, "normalisation": {"statistics": "0" * 64}}},
            r"data\.normalisation",
        ),
    ],
)
def test_what_statistics_cant_mean_is_refused_by_name(table: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=key):
        statistics_plan(**table)


def test_local_trust_is_priced_as_histograms() -> None:
    plan = statistics_plan(privacy={"epsilon": 0.5})
    release = plan.train_release()
    assert isinstance(release, NoisyHistograms)
    assert (release.columns, release.records_per_unit) == (4, 1)
    assert epsilon([release], plan.privacy.delta).epsilon <= 0.5
    little = release.with_noise_multiplier(release.noise_multiplier - 1e-4)
    assert epsilon([little], plan.privacy.delta).epsilon > 0.5  # and no more noise than that takes
    assert count_noise(plan) == release.noise == release.noise_multiplier * 2
    assert record_norm(plan) == 2.0
    assert [dict(one) for one in plan.terms().rounds] == [{release: 1}]


def test_rule_6_of_people_all_their_records_are_priced() -> None:
    data = {"name": "csv", "path": "x.csv", "card": CARD, "person_column": "who", "max_rows_per_person": 5}
    person = statistics_plan(data=data, privacy={"epsilon": 0.5}).train_release()
    record = statistics_plan(privacy={"epsilon": 0.5}).train_release()
    assert isinstance(person, NoisyHistograms)
    assert isinstance(record, NoisyHistograms)
    assert person.records_per_unit == 5
    assert person.noise_multiplier == pytest.approx(5 * record.noise_multiplier, rel=1e-3)


def test_distributed_trust_is_priced_as_one_sum_whose_records_are_1_long() -> None:
    plan = statistics_plan(privacy={"epsilon": 0.5, "trust": "distributed"})
    release = plan.train_release()
    assert isinstance(release, RoundedGaussianSum)
    grid = plan.sum_grid()
    assert release.l2_sensitivity * grid.step == pytest.approx(1.0, rel=1e-2)
    assert epsilon([release], plan.privacy.delta).epsilon <= 0.5
    # All honest clients' noise together, in counts.
    assert count_noise(plan) * math.sqrt(release.honest) == pytest.approx(
        release.noise_multiplier * release.l2_sensitivity * grid.step * 2, rel=1e-9
    )


def test_the_digest_names_bins_columns_and_edges() -> None:
    digests = {
        statistics_plan(statistics).digest()
        for statistics in ({}, {"bins": 6}, {"columns": ["age"]}, {"edges": {"age": [50.0]}}, {"most_records": 9})
    }
    assert len(digests) == 5


def test_plans_without_it_keep_their_digest() -> None:
    """What was pinned before there were statistics is pinned as it was."""
    plain = plan_from({"privacy": {"trust": "none"}}, where="test")
    assert plain.digest() == "7bce696159140cba37bc0a739d9d70fa7a485b93102c06985c595acc54acf5c3"
    assert Plan.model_validate({**plain.model_dump(), "statistics": None}).digest() == plain.digest()


@pytest.mark.parametrize("probe", [True, False])
def test_an_estimate_says_how_many_counts_there_are(probe: bool) -> None:
    from simulations.estimate import estimate

    raw = {"data": {"name": "csv", "path": "x", "card": CARD}, "statistics": {"bins": 5}, "privacy": {"epsilon": 0.5}}
    found = estimate(plan_from(raw, where="test"), probe=probe)
    assert (found.trained, found.frozen, found.probe) == (17, 0, None)


def test_text_that_is_predicted_at_each_place_has_nothing_to_count() -> None:
    with pytest.raises(UsageError, match="a label at each place"):
        statistics_plan(data={"name": "shakespeare", "partition": {"kind": "iid", "clients": 4}})
