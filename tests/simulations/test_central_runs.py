"""Whole runs under a server that adds the noise: they learn, everybody pays alike, and nothing told names who took
part."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from privacy.central_sum import ClippedSum, IndependentNoise, mean_of
from privacy.ledger.check import audit, verify
from privacy.noise import ReproducibleNoise
from server import federation as federation_module
from server.run_folder import RunFolder, read_parameters
from shared_models.parameters import get_parameters, layout_of, unflat
from shared_models.plan import Plan
from shared_models.plan_central import central_grid
from shared_models.protocol import ARRAYS
from shared_models.registry import build_for
from shared_models.resolve import resolve
from shared_models.seeds import derive_key
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from simulations.worker import Worker
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
    "federation.cohort={ sampling = 'poisson', rate = 0.5 }",
)


def central_plan(small_plan: PlanMaker, *changes: str) -> Plan:
    return small_plan(*CENTRAL, *changes)


def told(folder: RunFolder) -> dict[str, str]:
    """What may be shown to others: not checkpoints, nor the virtual clients' own ledger."""
    found = {}
    for path in sorted(folder.path.rglob("*")):
        own = folder.checkpoints in path.parents or path.name.startswith(folder.ledger.name)
        if path.is_file() and not own:
            found[str(path.relative_to(folder.path))] = path.read_bytes().decode("latin-1")
    return found


def test_everybody_pays_for_the_run_before_it_begins_and_the_population_for_each_round(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = central_plan(small_plan)
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert (outcome.stopped, outcome.state.faults) == (None, [])
    release = plan.train_release()
    assert release is not None
    paid = [body for body in bodies(folder.ledger, "reserve") if body["charge"] is not None]
    assert {body["task"]["phase"] for body in paid} == {"enrol"}
    assert sorted(body["task"]["client"] for body in paid) == [str(number) for number in range(6)]
    assert all(body["charge"]["releases"] == [[release.to_json(), 3]] for body in paid)
    rounds = bodies(folder.population, "reserve")
    assert [body["task"]["round"] for body in rounds] == [1, 2, 3]
    assert all(body["charge"]["releases"] == [[release.to_json(), 1]] for body in rounds)
    for path in (folder.ledger, folder.population):
        assert verify(path) == []
    for balance in (*audit(folder.population).balances, *audit(folder.ledger).balances):
        assert balance.spent is not None
        assert 3.9 < balance.spent.epsilon <= 4.0


def test_the_model_is_that_of_the_clipped_updates_bit_for_bit(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first round of a reproducible run, computed beside it of what each client sent."""
    plan = central_plan(small_plan, "federation.rounds=1", "privacy.noise=reproducible")
    layout = layout_of(build_for(plan), "float32")
    total = ClippedSum(central_grid(plan, layout.size), layout.size)
    original = Worker.handle

    def handle(self: Worker, metadata: Any, content: Any, name: str, state: Any, *company: Any) -> Any:
        reply, new = original(self, metadata, content, name, state, *company)
        if metadata.message_type == "train":
            total.add(np.concatenate([array.numpy().ravel() for array in reply.content[ARRAYS].values()]))
        return reply, new

    monkeypatch.setattr(Worker, "handle", handle)
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    grid = central_grid(plan, layout.size)
    noisy = IndependentNoise(grid, ReproducibleNoise(derive_key(plan.seed, "central-noise", 1))).noisy(total.total)
    start = get_parameters(build_for(plan))
    mean = unflat(mean_of(noisy, grid, 3.0), layout)
    expected = {name: np.asarray(value + mean[name], np.float32) for name, value in start.items()}
    assert same_bits(read_parameters(folder.model), expected)


def test_rule_3_nothing_that_a_run_tells_hangs_on_who_took_part(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Updates replaced by zeros and noise from the seed: two runs with other cohorts tell the same, byte for byte, but
    for times, the random id of the run, and what follows from it."""
    plan = central_plan(small_plan, "privacy.noise=reproducible")
    original = Worker.handle

    def handle(self: Worker, metadata: Any, content: Any, name: str, state: Any, *company: Any) -> Any:
        reply, new = original(self, metadata, content, name, state, *company)
        if metadata.message_type == "train":
            zeros = {key: Array(np.zeros_like(array.numpy())) for key, array in reply.content[ARRAYS].items()}
            reply.content[ARRAYS] = ArrayRecord(zeros)
        return reply, new

    monkeypatch.setattr(Worker, "handle", handle)

    def run(name: str, cohorts: list[list[str]]) -> dict[str, str]:
        rounds = iter(cohorts)
        monkeypatch.setattr(federation_module, "sample_cohort", lambda *_: next(rounds))
        folder, _ = start_run(plan, tmp_path / name, INLINE)
        return told(folder)

    one = run("one", [["0", "2"], [], ["1", "2", "3", "4", "5"]])
    other = run("other", [["5"], ["0", "1", "2"], ["5"]])
    assert "statements" not in {name.partition("/")[0] for name in one}
    assert one.keys() == other.keys()
    for name in ("plan.toml", "metrics.jsonl", "model/model.safetensors"):
        assert one[name] == other[name], name
    assert timeless(one["summary.json"]) == timeless(other["summary.json"])
    facts, others = (timeless(texts["report.json"]) for texts in (one, other))
    heads = [facts.pop("heads"), others.pop("heads")]  # of the population's ledger, whose hashes are of the run's id
    assert facts == others
    assert [[head["position"] for head in found] for found in heads] == [[6], [6]]
    assert capsys.readouterr().out == ""


def timeless(text: str) -> dict[str, Any]:
    found = json.loads(re.sub(r'"made": "[^"]*"', '"made": ""', text))
    found.pop("seconds", None)
    assert isinstance(found, dict)
    return found


def test_a_smaller_budget_ends_the_run_before_data_is_touched(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: Counter[str] = Counter()
    original = Worker.handle

    def handle(self: Worker, metadata: Any, content: Any, name: str, state: Any, *company: Any) -> Any:
        trained[metadata.message_type] += 1
        return original(self, metadata, content, name, state, *company)

    monkeypatch.setattr(Worker, "handle", handle)
    folder, outcome = start_run(central_plan(small_plan, "privacy.budget=3.9"), tmp_path / "run", INLINE)
    assert outcome.stopped == "budget"
    assert (trained["train"], trained["query.enrol"]) == (0, 6)
    assert folder.read_summary()["privacy"]["epsilon_max"] == 0


def test_clients_whose_own_budget_is_smaller_are_left_out_and_owe_nothing(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    plan = central_plan(small_plan, "privacy.client_budgets.3=1.0")
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped is None
    rows = {row["id"]: row for row in folder.read_summary()["privacy"]["clients"]}
    assert (rows["3"]["epsilon"], rows["3"]["refused"]) == (0.0, 1)
    assert {row["charged_rounds"] for name, row in rows.items() if name != "3"} == {3}


@pytest.mark.parametrize("sampling", ["{ sampling = 'fixed', size = 3 }", "{ sampling = 'all' }"])
def test_other_cohorts_run_and_report_too(small_plan: PlanMaker, tmp_path: Path, sampling: str) -> None:
    plan = central_plan(small_plan, f"federation.cohort={sampling}", "federation.rounds=2")
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped is None
    privacy = folder.read_summary()["privacy"]
    relation = "replace one unit" if "fixed" in sampling else "add or remove one unit"
    assert privacy["relation"] == relation
    report = json.loads((folder.path / "report.json").read_text(encoding="utf-8"))
    (balance,) = report["balances"]
    assert balance["verdict"]["basis"]["relation"] == relation
    assert balance["verdict"]["status"] == "simulated"
    kinds = {(one["name"], one["kind"]) for one in report["released"]}
    assert {("model", "charged"), ("arrays", "entrusted"), ("epsilon", "public")} <= kinds
    codes = {one["code"] for one in report["conditions"]}
    assert {"server-trusted", "membership"} <= codes
    assert "noise-testimony" not in codes
    assert ("cohort-secret" in codes) == ("fixed" in sampling)


def test_the_scenario_is_a_plan_of_many_small_clients() -> None:
    plan = resolve(find_plan("digits-central", ()))
    assert (plan.has_secret_cohorts, plan.federation.population, plan.privacy.epsilon) == (True, 300, 8.0)
