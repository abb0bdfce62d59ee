"""The study of a thousand clients, small: what a norm that adapts and correlated noise do, in whole runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from privacy.ledger.check import audit, verify
from server.checkpoint import load_checkpoint
from server.run_folder import read_parameters
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from simulations.studies import clients as study
from simulations.studies.clients_choice import Choice, judged
from simulations.studies.study import Result, play
from tests.simulations.conftest import PlanMaker
from tests.simulations.ledger_reading import bodies
from tests.simulations.test_compressed_runs import same_bits

INLINE = Settings(engine="inline")
CENTRAL = (
    "data.partition.clients=6",
    "model.options.hidden=[]",
    "training.steps=1",
    "federation.rounds=3",
    "privacy.unit=client",
    "privacy.trust=central",
    "privacy.epsilon=4",
)
SCHEMA = (
    "federation.cohort={ sampling = 'fixed', size = 2 }",
    "privacy.correlated={ band = 3 }",
    "federation.rounds=5",
)


# --- whole runs -----------------------------------------------------------------------------------------------------


def test_a_run_with_correlated_noise_is_paid_for_once_by_everybody_and_its_report_says_so(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = small_plan(*CENTRAL, *SCHEMA)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    release = plan.train_release()
    assert release is not None
    paid = [body for body in bodies(folder.ledger, "reserve") if body["charge"] is not None]
    assert sorted(body["task"]["client"] for body in paid) == [str(number) for number in range(6)]
    assert all(body["charge"]["releases"] == [[release.to_json(), 1]] for body in paid)
    for path in (folder.ledger, folder.population):
        assert verify(path) == []
    for balance in (*audit(folder.population).balances, *audit(folder.ledger).balances):
        assert balance.spent is not None
        assert 3.9 < balance.spent.epsilon <= 4.0
    for tally in outcome.state.clients.values():
        assert len(tally.asked) <= 2
        assert all(later - earlier >= 3 for earlier, later in pairwise(tally.asked))
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    (balance,) = report["balances"]
    assert balance["verdict"]["basis"]["relation"] == "add or remove one unit"
    assert balance["verdict"]["epsilon"] == pytest.approx(folder.read_summary()["privacy"]["epsilon_max"])
    assert {path["points"][-1]["value"] for path in balance["paths"]} == {balance["verdict"]["epsilon"]}
    assert all(not path["forecast"] for path in balance["paths"])
    assert [one["mechanism"] for one in report["charged"]] == ["banded-factorisation"]
    codes = {one["code"] for one in report["conditions"]}
    assert {"server-trusted", "participation-schema", "participation"} <= codes
    assert "cohort-secret" not in codes


def test_a_run_with_a_norm_that_adapts_ends_the_same_on_resume(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan(
        *CENTRAL, "federation.cohort={ sampling = 'all' }", "privacy.adaptive={}", "privacy.noise=reproducible"
    )
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    norms = [line["clipping_norm"] for line in folder.read_metrics()]
    assert norms[0] == plan.privacy.clipping_norm
    assert len(set(norms)) == 3
    found = load_checkpoint(folder.checkpoints, plan.digest())
    assert found is not None
    assert (
        found.state.clipping_norm
        == outcome.state.clipping_norm
        == folder.read_summary()["privacy"]["adaptive"]["last_norm"]
    )


SUMS = (
    "data.partition.clients=5",
    "model.options.hidden=[]",
    "training.steps=1",
    "federation.rounds=2",
    "privacy.unit=client",
    "privacy.trust=distributed",
    "privacy.epsilon=20",
    "privacy.noise=reproducible",
    "privacy.adaptive={}",
)


def test_over_secure_sums_the_norm_moves_as_it_does_without_masks(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Bit for bit, model and norm: the masks are gone from the sum."""
    found = {}
    for masks in ("true", "false"):
        folder, outcome = start_run(small_plan(*SUMS, f"secure_sum.masks={masks}"), tmp_path / masks, INLINE)
        assert (outcome.stopped, outcome.state.faults) == (None, [])
        found[masks] = read_parameters(folder.model), [line["clipping_norm"] for line in folder.read_metrics()]
    assert same_bits(found["true"][0], found["false"][0])
    assert found["true"][1] == found["false"][1]
    assert len(set(found["true"][1])) == 2


def test_the_scenario_is_a_plan_of_many_small_clients() -> None:
    plan = resolve(find_plan("fashion-clients", ()))
    assert (plan.has_secret_cohorts, plan.federation.population, plan.privacy.epsilon) == (True, 1000, 3.0)
    assert plan.privacy.adaptive is not None


# --- the study ------------------------------------------------------------------------------------------------------

SMALL = (
    "data.name=digits",
    "data.partition.clients=40",
    "training.expected_batch_size=35",
    "training.learning_rate=0.5",
    "federation.rounds=20",
    "federation.cohort={ sampling = 'poisson', rate = 0.2 }",
    "evaluation.every=20",
    "privacy.epsilon=20",
    "privacy.delta=1e-3",
    "privacy.noise=reproducible",
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """All rows, on digits; reproducible, so that they pass or fail for good."""
    schema = {"cohort": "federation.cohort={ sampling = 'fixed', size = 8 }", "separation": "5"}
    return play(study.cells([1], changes=SMALL, schema=schema), tmp_path_factory.mktemp("study"))


def test_all_rows_but_the_one_without_privacy_spend_the_same(results: list[Result]) -> None:
    assert [one.epsilon for one in results if one.name == study.PLAIN] == [None]
    private = [one for one in results if one.name != study.PLAIN]
    assert all(one.epsilon is not None and 19.9 < one.epsilon <= 20.0 for one in private)


def test_a_norm_that_adapts_makes_good_what_a_bad_first_one_costs(results: list[Result]) -> None:
    accuracy = {one.name: one.final["accuracy"] for one in results}
    for start in ("10 times too large", "10 times too small"):
        assert accuracy[study.adaptive(start)] > accuracy[study.fixed(start)] + 0.03
    good = accuracy[study.fixed("well chosen")]
    assert all(accuracy[study.adaptive(start)] > good - 0.1 for start in study.TIMES)


def test_correlated_noise_is_better_than_independent_noise_at_the_same_price(results: list[Result]) -> None:
    found = {one.name: one.final["loss"] for one in results}
    assert found[study.CORRELATED] < found[study.INDEPENDENT]


def test_the_table_names_every_row_and_difference(results: list[Result]) -> None:
    text = study.report(results)
    assert all(text.count(one.name) >= 1 for one in results)
    assert text.count("[") == 4


def test_a_plan_of_the_study_is_what_the_row_says() -> None:
    plans: dict[str, Plan] = {cell.name: cell.plan for cell in study.cells([1])}
    assert not plans.pop(study.PLAIN).is_private
    assert len(plans) == 8
    assert {plan.privacy.epsilon for plan in plans.values()} == {3.0}
    independent, correlated = plans[study.INDEPENDENT].privacy.correlated, plans[study.CORRELATED].privacy.correlated
    assert (independent and independent.band, correlated and correlated.band) == (1, 20)
    assert [plans[study.adaptive(start)].privacy.clipping_norm for start in study.TIMES] == [0.2, 2.0, 0.02]


@pytest.mark.parametrize(("adapts", "band"), [(False, None), (True, None), (False, 5)])
def test_settings_are_chosen_on_images_that_are_not_learnt_from(adapts: bool, band: int | None) -> None:
    """Two clouds of points, learnt in every way that is tried; and what is judged changes nothing that is learnt."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(6000) % 2
    images = torch.randn(6000, 4, generator=generator) + 2 * labels[:, None]
    images = torch.cat([images, torch.ones(6000, 1)], 1)
    choice = Choice(learning_rate=0.5, norm=0.5, noise_multiplier=0.1, adapts=adapts, band=band, rounds=10)
    first, second = (
        judged(images[:5000], labels[:5000], (images[part], labels[part]), choice, seed=1)
        for part in (slice(5000, 6000), slice(0, 5000))
    )
    assert min(first, second) > 0.9
