"""A run of statistics from plan to `statistics.json`, with noise at each client and in secure sums."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from client.statistics import exact_counts
from client.workplace import workplace
from privacy.ledger import Ledger
from privacy.lifetime import Balance
from security.errors import UsageError
from server.run_folder import RunFolder
from shared_models.histograms import histograms_of
from shared_models.plan import Plan
from shared_models.plan_file import plan_from, write_plan
from simulations.run import Settings, resume_run, start_run
from veil.main import app

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
SUMS = {"distributed": {"clients": 4}, "local": None}


def hospitals(trust: str, **tables: Any) -> Plan:
    raw: dict[str, Any] = {
        "name": "hospitals",
        "data": {"name": "heart-disease", "partition": {"kind": "natural", "column": "hospital"}},
        "statistics": {"bins": 14},
        "privacy": {"epsilon": 4.0, "trust": trust},
        "federation": {"min_clients": 4},
    }
    if trust == "distributed":
        raw["secure_sum"] = {"clients": 4}
    return plan_from({**raw, **tables}, where="test")


def truth(folder: RunFolder) -> np.ndarray:
    """The exact counts of all clients' training records."""
    plan = folder.read_plan()
    place = workplace(write_plan(plan))
    return np.sum([exact_counts(place.records(client), plan) for client in place.client_ids()], axis=0)


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_counts_over_all_clients_are_released_with_the_noise_that_is_told(trust: str, tmp_path: Path) -> None:
    """Some 150 counts: their errors' largest is below 6 deviations, and their root mean square within 35 % of what is
    told; normal noise strays so far with a chance below 1e-6."""
    folder, outcome = start_run(hospitals(trust), tmp_path / "run", Settings(engine="inline"))
    assert outcome.stopped is None
    found = folder.read_statistics()
    jsonschema.validate(found, json.loads((SCHEMAS / "statistics.schema.json").read_text()))
    jsonschema.validate(folder.read_summary(), json.loads((SCHEMAS / "summary.schema.json").read_text()))
    plan = folder.read_plan()
    assert (found["plan"], found["clients"]) == (plan.digest(), 4)
    exact = truth(folder)
    counts = np.concatenate([one["counts"] for one in found["columns"]])
    errors = (counts - exact) / found["noise"]
    assert np.abs(errors).max() < 6
    assert 0.65 < np.sqrt((errors**2).mean()) < 1.35
    assert abs(found["records"] - exact[-2:].sum()) < 6 * found["records_noise"]
    assert [one["column"] for one in found["columns"]] == [one.column for one in histograms_of(plan)]
    # Charged, once, to each; and no model was made.
    privacy = folder.read_summary()["privacy"]
    assert privacy["epsilon_max"] <= 4.0
    assert [row["charged_rounds"] for row in privacy["clients"]] == [1] * 4
    assert all(row["statement"] == "verified" for row in privacy["clients"])
    assert not folder.model.exists()
    assert b"Released counts of 4 clients" in folder.statistics.with_suffix(".svg").read_bytes()
    with Ledger.open(folder.ledger, durable=False) as ledger:
        for scope in ledger.scopes():
            (own,) = ledger.account(scope, Balance(unit="record", trust=trust)).plans
            assert Counter(dict(own.charged)) == {plan.train_release(): 1}
    assert json.loads(folder.report.with_suffix(".json").read_text())


def test_the_report_finds_the_books_in_agreement(tmp_path: Path) -> None:
    folder, _ = start_run(hospitals("local"), tmp_path / "run", Settings(engine="inline"))
    facts = json.loads(folder.report.with_suffix(".json").read_text())
    states = {one["code"]: one["status"] for one in facts["conditions"]}
    assert states["books-agree"] == "met"
    assert "batch-independence" not in {one["code"] for one in folder.read_summary()["privacy"]["assumptions"]}
    assert "noisy histograms" in json.dumps(facts)


def test_a_run_that_failed_tells_nothing(tmp_path: Path) -> None:
    plan = hospitals("local", privacy={"epsilon": 4.0, "budget": 1.0})
    folder, outcome = start_run(plan, tmp_path / "run", Settings(engine="inline"))
    assert outcome.stopped == "budget"
    with pytest.raises(UsageError, match="no statistics here"):
        folder.read_statistics()


def test_a_run_that_has_ended_is_not_played_again(tmp_path: Path) -> None:
    folder, _ = start_run(hospitals("local"), tmp_path / "run", Settings(engine="inline"))
    before = folder.statistics.read_bytes()
    again, outcome = resume_run(folder.path, Settings(engine="inline"))
    assert outcome is None
    assert again.statistics.read_bytes() == before


def test_a_run_that_was_killed_after_its_round_gives_the_same_statistics(tmp_path: Path) -> None:
    folder, _ = start_run(hospitals("local"), tmp_path / "run", Settings(engine="inline"))
    before = folder.statistics.read_bytes()
    folder.drop_summary()
    assert not folder.statistics.exists()
    resume_run(folder.path, Settings(engine="inline"))
    assert folder.statistics.read_bytes() == before


def test_the_same_seed_gives_the_same_simulated_counts(tmp_path: Path) -> None:
    plan = hospitals("local", privacy={"epsilon": 4.0, "noise": "reproducible"})
    found = [start_run(plan, tmp_path / name, Settings(engine="inline"))[0].read_statistics() for name in "ab"]
    assert found[0] == found[1]


def test_the_terminal_shows_a_table(tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(write_plan(hospitals("local")))
    result = CliRunner().invoke(
        app, ["simulate", str(plan), "--engine", "inline", "--out", str(tmp_path / "run")], env={"COLUMNS": "100"}
    )
    assert result.exit_code == 0, result.output
    assert "noise of deviation" in result.output
    assert "age" in result.output
    assert "categor" in result.output
