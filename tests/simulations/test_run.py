"""A simulated run from plan to folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from client.datasets.partition import client_records
from client.workplace import split_key
from security.errors import RunError, UsageError
from server.observer import RoundRecord, Silent
from server.run_folder import RunFolder
from simulations.results import Run, load_run
from simulations.run import Settings, failure, load_data, resume_run, start_run
from simulations.scenarios import find_plan
from tests.simulations.conftest import PlanMaker
from tests.simulations.faulty_app import SECRET

INLINE = Settings(engine="inline")
FAULTY = "tests.simulations.faulty_app:app"


class StopAfter(Silent):
    """An observer that interrupts the run once a round is on disk, as Ctrl-C or a kill would."""

    def __init__(self, last: int) -> None:
        self.last = last

    def round_done(self, record: RoundRecord) -> None:
        """Interrupt."""
        if record.round == self.last:
            raise KeyboardInterrupt


def model_bytes(folder: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(folder / "model" / "model.safetensors").items()}


def test_a_run_leaves_what_the_design_promises(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, outcome = start_run(small_plan(), tmp_path / "run", INLINE)
    assert outcome.stopped is None
    promised = {
        "plan.toml",
        "metrics.jsonl",
        "summary.json",
        "checkpoints",
        "ledger.sqlite",
        "report.html",
        "report.json",
    }
    assert promised | {"model"} <= {path.name for path in folder.path.iterdir()}
    assert (folder.path / "model" / "model.safetensors").exists()
    assert len(folder.read_metrics()) == 3


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("federation.strategy=fedadam", "federation.strategy_options.eta=0.01"),
        ("federation.strategy=fedavgm", "federation.strategy_options.server_momentum=0.5"),
        ("federation.strategy=fedmedian",),
        ("federation.cohort.sampling=poisson", "federation.cohort.rate=0.3"),
        ("privacy.trust=local", "privacy.noise=reproducible"),
    ],
    ids=["fedavg", "fedadam", "fedavgm", "fedmedian", "poisson", "private"],
)
def test_an_interrupted_run_resumes_to_the_same_model(
    small_plan: PlanMaker, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    plan = small_plan(*overrides)
    whole, _ = start_run(plan, tmp_path / "whole", INLINE)
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, tmp_path / "broken", replace(INLINE, observer=StopAfter(1)))
    broken, outcome = resume_run(tmp_path / "broken", INLINE)
    assert outcome is not None
    assert outcome.state.round == 3
    assert model_bytes(broken.path) == model_bytes(whole.path)
    assert [line["round"] for line in broken.read_metrics()] == [1, 2, 3]
    assert privacy_of(broken) == privacy_of(whole)


def privacy_of(folder: RunFolder) -> dict[str, Any]:
    """The privacy part of a summary, without the hashes of ledgers: each chain is unlike every other."""
    found: dict[str, Any] = folder.read_summary()["privacy"]
    for row in found["clients"]:
        row["head"] = row["head"] and row["head"]["position"]
    return found


def test_a_finished_run_is_not_run_again(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(small_plan(), tmp_path / "run", INLINE)
    before = folder.summary.read_bytes()
    assert resume_run(tmp_path / "run", INLINE)[1] is None
    assert folder.summary.read_bytes() == before


def test_a_folder_that_holds_a_run_is_not_overwritten(small_plan: PlanMaker, tmp_path: Path) -> None:
    start_run(small_plan(), tmp_path / "run", INLINE)
    with pytest.raises(UsageError, match="holds a run already"):
        start_run(small_plan(), tmp_path / "run", INLINE)


def test_more_clients_than_examples_is_refused_before_anything_runs(small_plan: PlanMaker, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.partition\.clients = 5000 is more than the \d+ training records"):
        start_run(small_plan("data.partition.clients=5000"), tmp_path / "run", INLINE)
    assert not (tmp_path / "run").exists()


def test_faulty_clients_are_left_out_by_name_and_code(small_plan: PlanMaker, tmp_path: Path) -> None:
    """One line for each deliberate fault; the round goes on with the rest. (Dying processes: test_ray_grid.)"""
    plan = small_plan("data.partition.clients=6", "federation.rounds=1", "federation.min_clients=1")
    folder, outcome = start_run(plan, tmp_path / "run", replace(INLINE, app=FAULTY))
    assert outcome.stopped is None
    assert folder.read_summary()["faults"] == [
        {"round": 1, "client": "1", "reason": "client-failed"},
        {"round": 1, "client": "2", "reason": "model-mismatch"},
        {"round": 1, "client": "3", "reason": "model-mismatch"},
        {"round": 1, "client": "4", "reason": "non-finite"},
        {"round": 1, "client": "5", "reason": "malformed-reply"},
    ]
    assert folder.read_metrics()[0]["updates"] == 1


def test_a_round_below_the_minimum_fails_and_says_why(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("data.partition.clients=6", "federation.min_clients=2")
    folder, outcome = start_run(plan, tmp_path / "run", replace(INLINE, app=FAULTY))
    assert outcome.stopped == "failed"
    assert outcome.reason == (
        "round 1: 1 good updates of 6 clients, the plan needs 2 "
        "(client-failed, malformed-reply, model-mismatch, non-finite)"
    )
    assert folder.read_summary()["stopped"] == "failed"
    assert any(folder.checkpoints.iterdir())


def test_where_a_client_failed_is_in_the_runs_folder_and_its_errors_text_is_not(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 5: an exception's text could hold a record, so no more than its kind and place is kept."""
    monkeypatch.chdir(tmp_path)
    plan = small_plan("data.partition.clients=2", "federation.min_clients=2")
    folder, outcome = start_run(plan, Path("run"), replace(INLINE, app=FAULTY))
    assert outcome.stopped == "failed"
    line = folder.client_log.read_text()
    assert line.startswith("round 1  client 1: the app failed: RuntimeError at ")
    assert "faulty_app.py:" in line
    assert line.count("\n") == 1
    assert all(SECRET not in file.read_text("latin-1") for file in folder.path.rglob("*") if file.is_file())
    assert str(failure(folder, outcome)).endswith("(client-failed); clients.log says where in the code")


def test_a_run_without_evaluation_may_train_on_all_records(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("data.test_fraction=0", "evaluation.where=none")
    test, clients = load_data(plan)
    assert len(test.x) == 0
    assert sum(len(client_records(plan.data, seed=plan.seed, split_key=split_key(plan))[c]) for c in clients) == 1797
    _, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped is None


def test_where_no_client_failed_there_is_no_log_of_it(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(small_plan("federation.rounds=1"), tmp_path / "run", INLINE)
    assert not folder.client_log.exists()


def test_an_exhausted_budget_ends_the_run_as_such(small_plan: PlanMaker, tmp_path: Path) -> None:
    """A client refuses the round that its budget does not cover; nobody is left, and the run says so."""
    plan = small_plan("privacy.trust=local", "privacy.budget=6.0")
    folder, outcome = start_run(plan, tmp_path / "run", INLINE)
    assert outcome.stopped == "budget"
    rows = folder.read_summary()["privacy"]["clients"]
    assert all(0 < row["epsilon"] <= 6.0 and row["refused"] == 1 for row in rows)
    assert {row["budget"] for row in rows} == {6.0}


def test_resuming_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no run here"):
        resume_run(tmp_path, INLINE)


def test_a_changed_plan_is_not_resumed(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(small_plan(), tmp_path / "run", INLINE)
    text = folder.plan.read_text().replace("learning_rate = 0.1", "learning_rate = 0.2")
    folder.plan.write_text(text)
    with pytest.raises(UsageError, match="belongs to another plan"):
        resume_run(folder.path, INLINE)


def test_a_full_disk_stops_the_run_with_one_line_and_keeps_the_last_checkpoint(
    small_plan: PlanMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan()
    whole, _ = start_run(plan, tmp_path / "whole", INLINE)

    class FullAfterOneRound(StopAfter):
        def round_done(self, record: RoundRecord) -> None:
            def full(*_: object, **__: object) -> None:
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(Path, "mkdir", full)

    with pytest.raises(RunError, match=r"No space left on device.*--resume"):
        start_run(plan, tmp_path / "run", replace(INLINE, observer=FullAfterOneRound(1)))
    monkeypatch.undo()
    resumed, _ = resume_run(tmp_path / "run", INLINE)
    assert model_bytes(resumed.path) == model_bytes(whole.path)


def test_reproducible_noise_gives_the_same_model_and_secret_noise_does_not(
    small_plan: PlanMaker, tmp_path: Path
) -> None:
    reproducible = small_plan("privacy.trust=local", "privacy.noise=reproducible", "federation.rounds=1")
    secret = small_plan("privacy.trust=local", "federation.rounds=1")
    models = [
        model_bytes(start_run(plan, tmp_path / str(i), INLINE)[0].path)
        for i, plan in enumerate((reproducible, reproducible, secret, secret))
    ]
    assert models[0] == models[1]
    assert models[2] != models[3]


def test_a_simulated_run_says_that_it_is_no_claim(small_plan: PlanMaker, tmp_path: Path) -> None:
    """Principle 3 and rule 9."""
    plan = small_plan("privacy.trust=local", "privacy.noise=reproducible", "federation.rounds=1")
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    privacy = folder.read_summary()["privacy"]
    assert privacy["claim"] is None
    assert [reason["code"] for reason in privacy["withdrawn"]] == ["deployed", "secret-noise"]
    assert folder.read_summary()["setting"] == "simulation"


def test_a_run_can_be_read_back(small_plan: PlanMaker, tmp_path: Path) -> None:
    import torch

    folder, outcome = start_run(small_plan(), tmp_path / "run", INLINE)
    run = load_run(folder.path)
    assert list(run.metrics.index) == [1, 2, 3]
    assert run.metrics.loc[3, "accuracy"] == run.summary["final"]["accuracy"]
    weight = next(iter(run.model().state_dict().values()))
    assert torch.equal(weight, torch.from_numpy(next(iter(outcome.parameters.values()))))
    assert isinstance(run, Run)
    assert run.report["trust"] == "none"


def test_hospitals_are_compared_with_each_alone_and_all_pooled(tmp_path: Path) -> None:
    plan = find_plan("hospitals-plain", ["federation.rounds=1", "training.steps=2"])
    folder, _ = start_run(plan, tmp_path / "run", INLINE)
    rows = json.loads(folder.summary.read_text())["baselines"]["rows"]
    assert [row["name"] for row in rows] == [
        "federated",
        "all data pooled",
        "cleveland alone",
        "hungary alone",
        "switzerland alone",
        "va-long-beach alone",
    ]
    assert all(0 < row["metrics"]["auc"] < 1 for row in rows)


def test_two_processes_do_not_play_one_run(small_plan: PlanMaker, tmp_path: Path) -> None:
    folder, _ = start_run(small_plan(), tmp_path / "run", INLINE)
    with folder.locked(), pytest.raises(UsageError, match="another process is playing this run"):
        resume_run(folder.path, INLINE)


def test_a_wrong_option_leaves_no_folder_behind(small_plan: PlanMaker, tmp_path: Path) -> None:
    plan = small_plan("federation.strategy_options.foo=1")
    with pytest.raises(UsageError, match=r"strategy_options\.foo"):
        start_run(plan, tmp_path / "run", INLINE)
    assert not (tmp_path / "run").exists()
