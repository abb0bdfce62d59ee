"""What a search costs: the composition of all its trials, held against the clients' ledgers by a second library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from privacy import accountant
from simulations.run import Settings, start_run
from simulations.sweep.cost import charged_of, search_costs
from simulations.sweep.space import parse_axes, points
from simulations.sweep.trials import Trial, planned_of, trials_of
from tests.simulations.ledger_reading import charges, epsilon

SMALL = ("model.name=mlp", "model.options.hidden=[8]", "training.steps=2", "federation.rounds=3")


def trials(*overrides: str, over: str = "training.learning_rate=0.1,0.2") -> list[Trial]:
    tried = points(parse_axes(over.split()), samples=None, random=False, seed=7)
    return trials_of("digits", (*SMALL, *overrides), tried, charge=False)


def played(found: list[Trial], folder: Path) -> dict[str, Any]:
    for trial in found:
        start_run(trial.plan, folder / trial.name, Settings(engine="inline"))
    return {trial.name: json.loads((folder / trial.name / "summary.json").read_text()) for trial in found}


@pytest.mark.parametrize(
    "overrides",
    [
        ("evaluation.where=clients", "evaluation.count_noise=30"),
        ("federation.cohort.sampling=fixed", "federation.cohort.size=4"),
        ("privacy.client_budgets.3=4",),  # stops early for want of budget: what wasn't released isn't charged
    ],
    ids=["counts", "cohorts", "budgets"],
)
def test_the_search_costs_what_the_ledgers_of_all_trials_hold(overrides: tuple[str, ...], tmp_path: Path) -> None:
    found = trials(*overrides, over="training.learning_rate=0.1,0.2 training.sample_rate=0.2,0.3")
    (cost,) = search_costs(found, played(found, tmp_path))
    in_ledgers = [
        epsilon([one for trial in found for one in charges(tmp_path / trial.name / "ledger.sqlite", f"{client}")], 1e-5)
        for client in range(10)
    ]
    assert cost.epsilon == pytest.approx(max(in_ledgers), rel=2e-3)
    assert cost.epsilon is not None
    assert cost.planned is not None
    assert cost.epsilon <= cost.planned + 1e-9
    assert cost.epsilon > 8.0, "more than any single trial"
    assert cost.rdp_epsilon is not None
    assert cost.rdp_epsilon >= cost.epsilon


@pytest.mark.parametrize("stopped", ["target", "plateau", "failed"])
def test_a_trial_whose_end_may_depend_on_data_counts_with_all_that_it_planned(stopped: str, tmp_path: Path) -> None:
    """Rule 4; so does one that was stopped by the search, is broken, or was never played."""
    found = trials()
    whole = played(found, tmp_path)
    (all_played,) = search_costs(found, whole)
    cut = {**whole[found[1].name], "stopped": stopped}
    for row in cut["privacy"]["clients"]:
        row["charged_rounds"] = 1
    for second in (cut, None):
        (cost,) = search_costs(found, {**whole, found[1].name: second})
        assert cost.epsilon == all_played.epsilon


def test_a_clients_own_books_count_where_they_say_more(tmp_path: Path) -> None:
    found = trials()
    whole = played(found, tmp_path)
    first = whole[found[0].name]
    charged = charged_of(found[0].plan, first)
    assert charged is not None
    assert charged["0"] == planned_of(found[0].plan)
    first["privacy"]["clients"][0]["charged_rounds"] = 1
    again = charged_of(found[0].plan, first)
    assert again is not None
    assert again["0"] == planned_of(found[0].plan)


def test_unlike_units_and_trust_are_never_added() -> None:
    of_records = trials(over="training.learning_rate=0.1,0.2")
    of_clients = trials("privacy.unit=client", "privacy.trust=central", over="training.learning_rate=0.3,0.4")
    costs = search_costs([*of_records, *of_clients], {})
    assert [cost.unit for cost in costs] == ["record, not person", "client, all that it holds"]
    assert [cost.trust for cost in costs] == ["local", "central"]
    for cost, part in zip(costs, (of_records, of_clients), strict=True):
        together = sum((planned_of(trial.plan) for trial in part), Counter())
        assert cost.epsilon == accountant.epsilon(together, 1e-5).epsilon


def test_records_that_move_between_clients_cost_the_worst_and_clients_that_do_have_none(tmp_path: Path) -> None:
    cohorts = ("federation.cohort.sampling=fixed", "federation.cohort.size=4")
    found = trials(*cohorts, over="seed=1,2")
    (cost,) = search_costs(found, played(found, tmp_path))
    assert cost.epsilon == cost.planned
    (of_clients,) = search_costs(trials("privacy.unit=client", "privacy.trust=central", over="seed=1,2"), {})
    assert of_clients.epsilon is None
    assert of_clients.problem is not None
    assert "unlike ways" in of_clients.problem


def test_trials_without_privacy_have_no_epsilon() -> None:
    assert search_costs(trials("privacy.trust=none"), {}) == []


def test_unlike_deltas_are_priced_at_the_smallest() -> None:
    (cost,) = search_costs(trials(over="privacy.delta=1e-5,1e-6"), {})
    assert cost.delta == 1e-6
