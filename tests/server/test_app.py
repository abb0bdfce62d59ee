"""The ServerApp: from a job to a finished folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from security.errors import RunError, UsageError
from server.app import ServerJob, lead, server_app
from server.checkpoint import load_checkpoint
from server.evaluation import TestData, metrics_of, scores_of
from server.run_folder import RunFolder, read_parameters
from shared_models.example_form import ExampleForm
from shared_models.faults import Fault
from shared_models.parameters import get_parameters, layout_of, set_parameters
from shared_models.plan import Plan
from shared_models.protocol import (
    ARRAYS,
    CONFIG,
    EPSILON,
    LAYOUT_DIGEST,
    LEDGER,
    METRICS,
    STATEMENT,
    TRAIN_LOSS,
    WEIGHT,
)
from shared_models.registry import build
from tests.server.conftest import (
    PRIVATE,
    Diary,
    StopAfter,
    StoppedOnPurposeError,
    StreamingFakeGrid,
    head,
    head_record,
    make_plan,
    same_bits,
)
from tests.server.test_statements import Owner

CLIENTS = ["0", "1", "2"]
NETWORK = {
    "data": {"partition": {"kind": "iid", "clients": 3}},
    "model": {"name": "mlp", "options": {"hidden": [4]}},
    "federation": {"rounds": 3},
}
DATA = TestData(x=torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)), y=torch.arange(40) % 10)


def network(plan: Plan) -> torch.nn.Module:
    return build(plan.model.name, plan.model.options, form=ExampleForm((1, 8, 8), 10), seed=plan.seed)


def shrinks(client: str, message: Message) -> list[Message]:
    """A client whose update pulls every parameter towards zero, each one a little differently."""
    rate = np.float32(0.1 * (1 + int(client)))
    delta = {name: Array(-rate * array.numpy()) for name, array in message.content.array_records[ARRAYS].items()}
    fields = MetricRecord({WEIGHT: 1, TRAIN_LOSS: 0.5})
    told = head_record(head(int(message.metadata.group_id)))
    return [Message(RecordDict({ARRAYS: ArrayRecord(delta), METRICS: fields, LEDGER: told}), reply_to=message)]


def shrinks_privately(client: str, message: Message) -> list[Message]:
    (found,) = shrinks(client, message)
    found.content[METRICS] = MetricRecord({WEIGHT: 1, EPSILON: 0.5})
    return [found]


def job(plan: Plan, path: Path, **settings: Any) -> ServerJob:
    folder = RunFolder(path)
    if "resume" not in settings:
        folder.create(plan)
    return ServerJob(plan=plan, folder=folder, **settings)


def test_an_app_leads_the_run_of_its_job_on_any_grid(tmp_path: Path) -> None:
    plan = make_plan(NETWORK)
    given = job(plan, tmp_path / "run", test=DATA)
    assert given.outcome is None
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    server_app(given)(StreamingFakeGrid(CLIENTS, shrinks), context)
    assert given.outcome is not None
    assert given.outcome.state.round == 3
    assert given.folder.read_summary()["rounds"] == 3


def test_it_starts_from_the_plans_network_and_leaves_model_and_summary(tmp_path: Path) -> None:
    plan = make_plan(NETWORK)
    diary, grid = Diary(), StreamingFakeGrid(CLIENTS, shrinks)
    given = job(plan, tmp_path / "run", test=DATA, observer=diary)
    outcome = lead(given, grid)
    start = get_parameters(network(plan))
    for name, value in outcome.parameters.items():
        np.testing.assert_allclose(value, start[name] * 0.8**3, rtol=1e-5)
    assert same_bits(read_parameters(given.folder.model), outcome.parameters)
    assert grid.sent[0].content.config_records[CONFIG][LAYOUT_DIGEST] == layout_of(network(plan), "float32").digest
    summary = given.folder.read_summary()
    assert summary["plan_digest"] == plan.digest()
    assert summary["stopped"] is None
    assert summary["seconds"]["startup"] >= 0
    assert [row["id"] for row in summary["privacy"]["clients"]] == CLIENTS
    assert len(diary.rounds) == 3


def test_the_final_metrics_are_those_of_the_model_in_the_folder(tmp_path: Path) -> None:
    plan = make_plan(NETWORK)
    given = job(plan, tmp_path / "run", test=DATA)
    lead(given, StreamingFakeGrid(CLIENTS, shrinks))
    model = network(plan)
    set_parameters(model, read_parameters(given.folder.model))
    assert given.folder.read_summary()["final"] == pytest.approx(metrics_of(scores_of(model, DATA.x, 512), DATA.y))


@pytest.mark.parametrize("where", ["none", "server"])
def test_it_evaluates_only_where_the_plan_wants_it_and_there_is_data(tmp_path: Path, where: str) -> None:
    plan = make_plan(NETWORK, {"evaluation": {"where": where}})
    given = job(plan, tmp_path / "run", test=DATA if where == "none" else None)
    lead(given, StreamingFakeGrid(CLIENTS, shrinks))
    summary = given.folder.read_summary()
    assert summary["final"] is None
    assert summary["best"] is None


def test_a_failed_run_leaves_a_model_and_a_summary_that_says_why(tmp_path: Path) -> None:
    plan = make_plan(NETWORK)
    given = job(plan, tmp_path / "run", test=DATA)
    outcome = lead(given, StreamingFakeGrid(CLIENTS, lambda client, message: []))
    assert outcome.stopped == "failed"
    summary = given.folder.read_summary()
    assert summary["stopped"] == "failed"
    assert summary["reason"] == "round 1: 0 good updates of 3 clients, the plan needs 1 (timed-out)"
    assert summary["faults"] == [{"round": 1, "client": client, "reason": "timed-out"} for client in CLIENTS]
    assert same_bits(read_parameters(given.folder.model), get_parameters(network(plan)))


def test_an_interrupted_run_leaves_no_summary_and_goes_on_to_the_same_model(tmp_path: Path) -> None:
    plan = make_plan(NETWORK)
    whole = lead(job(plan, tmp_path / "whole", test=DATA), StreamingFakeGrid(CLIENTS, shrinks))
    attachments = lambda: {"clients.json": b"states"}  # noqa: E731
    broken = job(plan, tmp_path / "broken", test=DATA, observer=StopAfter(2), attachments=attachments)
    with pytest.raises(StoppedOnPurposeError):
        lead(broken, StreamingFakeGrid(CLIENTS, shrinks))
    with pytest.raises(UsageError, match="the run is not finished"):
        broken.folder.read_summary()
    checkpoint = load_checkpoint(broken.folder.checkpoints, plan.digest())
    assert checkpoint is not None
    assert checkpoint.attachments == {"clients.json": b"states"}
    again = lead(job(plan, tmp_path / "broken", test=DATA, resume=checkpoint), StreamingFakeGrid(CLIENTS, shrinks))
    assert same_bits(again.parameters, whole.parameters)
    assert broken.folder.read_summary()["final"] == RunFolder(tmp_path / "whole").read_summary()["final"]


def test_the_summary_of_a_failure_does_not_outlive_it(tmp_path: Path) -> None:
    """Were it left there, a run killed right after its last round would be taken for one that ended as it says."""
    plan = make_plan(NETWORK)
    failed = job(plan, tmp_path / "run", test=DATA)
    lead(failed, StreamingFakeGrid(CLIENTS, lambda client, message: []))
    assert failed.folder.read_summary()["stopped"] == "failed"
    assert failed.folder.report.exists()
    checkpoint = load_checkpoint(failed.folder.checkpoints, plan.digest())
    again = job(plan, tmp_path / "run", test=DATA, resume=checkpoint, observer=StopAfter(3))
    with pytest.raises(StoppedOnPurposeError):
        lead(again, StreamingFakeGrid(CLIENTS, shrinks))
    assert not failed.folder.summary.exists()
    assert not failed.folder.report.exists()
    assert not failed.folder.report.with_suffix(".json").exists()


def test_a_client_whose_statement_says_that_its_history_has_a_gap_withdraws_its_claim(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "ledger.sqlite", rounds=9)  # longer than the clients of this test tell of
    owner.ledger.append_recovery("people", {"acknowledged": [], "charges": [], "withdrawn": True})
    grid = StreamingFakeGrid(CLIENTS, shrinks_privately)
    grid.statements = {"1": owner.says("epsilon")}
    keys = dict.fromkeys(CLIENTS, owner.identity.public_hex)
    given = job(make_plan(NETWORK, PRIVATE), tmp_path / "run", test=DATA, simulated=False, identities=keys)
    lead(given, grid)
    found = {one["code"]: one["clients"] for one in given.folder.read_summary()["privacy"]["withdrawn"]}
    assert found == {"no-gap": ["1"], "stated": ["0", "2"]}
    assert grid.timeouts[-1] is None  # as patient as the grid: a claim hangs on it


def test_a_run_that_cant_begin_says_so_and_writes_no_summary(tmp_path: Path) -> None:
    given = job(make_plan(NETWORK), tmp_path / "run", test=DATA)
    with pytest.raises(RunError, match="0 clients joined"):
        lead(given, StreamingFakeGrid([], shrinks))
    assert not given.folder.summary.exists()


def test_flowers_own_messages_about_each_step_are_not_shown(tmp_path: Path) -> None:
    logging.getLogger("flwr").setLevel(logging.INFO)
    lead(job(make_plan(NETWORK), tmp_path / "run"), StreamingFakeGrid(CLIENTS, shrinks))
    assert logging.getLogger("flwr").getEffectiveLevel() == logging.ERROR


# --- statements ---------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """These clients have no ledgers to report of."""
    monkeypatch.setattr("server.report.write_report", lambda folder: None)


@pytest.mark.usefixtures("no_report")
def test_at_the_end_each_client_is_asked_for_a_statement_and_the_summary_says_what_came(tmp_path: Path) -> None:
    plan = make_plan(NETWORK, PRIVATE)
    grid = StreamingFakeGrid(CLIENTS, shrinks_privately)
    grid.statements = {"0": "I spent nothing", "1": Fault.LEDGER_CLOSED, "2": Fault.CLIENT_FAILED}
    given = job(plan, tmp_path / "run")
    lead(given, grid)
    assert [message.metadata.message_type for message in grid.sent[-3:]] == [STATEMENT] * 3
    rows = given.folder.read_summary()["privacy"]["clients"]
    assert rows[0]["statement"].startswith("not verified: the statement can't be read")
    assert [row["statement"] for row in rows[1:]] == ["none: ledger-closed", "none: client-failed"]
    assert given.folder.read_statements() == {"0": "I spent nothing"}  # kept as it was said, whatever it is worth


@pytest.mark.usefixtures("no_report")
def test_without_privacy_nobody_is_asked_for_one(tmp_path: Path) -> None:
    grid = StreamingFakeGrid(CLIENTS, shrinks)
    given = job(make_plan(NETWORK), tmp_path / "run")
    lead(given, grid)
    assert {message.metadata.message_type for message in grid.sent} == {"train"}
    assert not given.folder.statements.exists()


@pytest.mark.usefixtures("no_report")
def test_a_client_that_has_left_still_has_its_row(tmp_path: Path) -> None:
    """What it spent was spent."""
    plan = make_plan(NETWORK, PRIVATE)
    broken = job(plan, tmp_path / "run", observer=StopAfter(2))
    with pytest.raises(StoppedOnPurposeError):
        lead(broken, StreamingFakeGrid(CLIENTS, shrinks_privately))
    checkpoint = load_checkpoint(broken.folder.checkpoints, plan.digest())
    again = job(plan, tmp_path / "run", resume=checkpoint)
    lead(again, StreamingFakeGrid(["0", "1"], shrinks_privately))
    rows = {row["id"]: row for row in again.folder.read_summary()["privacy"]["clients"]}
    assert {client: row["charged_rounds"] for client, row in rows.items()} == {"0": 3, "1": 3, "2": 2}
    assert rows["2"]["epsilon"] > 0
    assert rows["2"]["statement"] is None
