"""The study of the zoo: its runs are what its table says; they are too long to be played here."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared_models.features.maps import names as feature_names
from shared_models.registry import names
from simulations.studies.study import Result
from simulations.studies.zoo import MOST_JOINT, Run, main, report, runs, trained
from simulations.studies.zoo_rows import DATA, ROWS, Row
from tests.shared_models.fetching import fetch_or_skip


def test_every_network_and_every_kind_of_data_has_a_row() -> None:
    found = [run.cell.plan for run in runs(1)]
    assert {plan.model.name for plan in found} == set(names())
    assert {plan.features.name for plan in found if plan.features} >= set(feature_names()) - {"scattering-patches"}
    assert {row.data for row in ROWS} == set(DATA)


def test_rows_and_runs_have_names_of_their_own() -> None:
    found = [run.cell.name for run in runs(1)]
    assert len(set(found)) == len(found)


ONLY_PLAIN = {"cnn, wide on fashion-mnist", "resnet on fashion-mnist"}
"""How well large networks do: with privacy small ones, which have rows too, do better."""


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_played_without_privacy_locally_and_jointly_at_two_epsilons(row: Row) -> None:
    private = [] if row.name in ONLY_PLAIN else ["local, epsilon 8", "joint, epsilon 3", "joint, epsilon 8"]
    assert list(row.settings()) == ["no privacy", *private]


@pytest.mark.parametrize("run", runs(3), ids=lambda run: run.cell.name)
def test_a_plan_is_what_its_runs_name_says(run: Run) -> None:
    plan = run.cell.plan
    assert run.cell.seed == 3
    assert plan.privacy.unit == "example"
    assert plan.privacy.delta == 1e-5
    kind, _, epsilon = run.setting.partition(", epsilon ")
    assert {"no privacy": "none", "local": "local", "joint": "distributed"}[kind] == plan.privacy.trust
    if epsilon:
        assert plan.privacy.epsilon == float(epsilon)
        records = DATA[run.row.data].records  # rule 1: a public number
        assert plan.training.expected_batch_size == max(1, round(plan.training.sample_rate * records))
    if kind == "joint":
        assert (plan.secure.clients, plan.secure.honest, plan.secure.corrupt) == (run.clients, 1.0, 0.0)
        assert plan.training.epochs is None  # a round is one step


@pytest.mark.parametrize("row", [row for row in ROWS if row.joint], ids=lambda row: row.name)
def test_joint_rows_train_no_more_than_they_may(row: Row) -> None:
    if row.model.startswith("minilm"):
        fetch_or_skip("minilm")
    assert 0 < trained(row) <= MOST_JOINT


def test_the_table_tells_scores_epsilons_and_bytes_of_a_client_and_round() -> None:
    played = [run for run in runs(1) if run.row.name == "linear on adult"][:2]
    results = [
        Result(
            name=run.cell.name,
            seed=1,
            digest="",
            final={"accuracy": 0.8456},
            epsilon=epsilon,
            noise_multiplier=None,
            seconds=90.0,
            up=rounds * 10 * 4_000,
            down=rounds * 10 * 2_000,
        )
        for run, epsilon, rounds in zip(
            played, (None, 7.999), [run.cell.plan.federation.rounds for run in played], strict=True
        )
    ]
    head, row, *lines = report(list(zip(played, results, strict=True))).splitlines()
    assert head.split() == ["trained", "score", "epsilon", "minutes", "kB", "up", "kB", "down"]
    assert row.split() == ["linear", "on", "adult", "118"]
    assert lines[0].split() == ["no", "privacy", "84.56", "-", "1.5", "4", "2"]
    assert lines[1].split() == ["local,", "epsilon", "8", "84.56", "8.00", "1.5", "4", "2"]


def test_what_is_not_played_is_told_without_playing_it(tmp_path: Path) -> None:
    out = tmp_path / "table.txt"
    main(["--only", "linear on adult", "--only-report", "--folder", str(tmp_path / "none"), "--out", str(out)])
    rows = [line.split() for line in out.read_text().splitlines()[2:]]
    assert [row[-1] for row in rows] == ["?"] * 4
    assert not (tmp_path / "none").exists()
