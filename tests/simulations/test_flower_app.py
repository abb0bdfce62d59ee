"""The thin Flower app: server and clients, in processes of their own, find the same plan and the same ledger."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from flwr.app import Context, RecordDict

from security.errors import UsageError
from shared_models.plan_file import parse_plan

APP = Path(__file__).resolve().parents[2] / "simulations" / "flower_app" / "veil_flower_app.py"
TINY = "model.name=mlp training.steps=1 federation.rounds=1"


@pytest.fixture(scope="module")
def app() -> ModuleType:
    """The module as Flower loads it: from its folder, under its one name."""
    spec = importlib.util.spec_from_file_location("veil_flower_app", APP)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def context(out: str, *, run_id: int = 4711, node_id: int = 1) -> Context:
    config: dict[str, bool | float | int | str] = {"plan": "digits", "set": TINY, "out": out}
    return Context(
        run_id=run_id, node_id=node_id, node_config={"partition-id": 3}, state=RecordDict(), run_config=config
    )


def test_a_client_is_told_the_resolved_plan_and_the_ledger_in_the_runs_folder(app: ModuleType, tmp_path: Path) -> None:
    told = app._with_plan(context(str(tmp_path / "run")))
    assert parse_plan(str(told.run_config["plan"]), where="plan").privacy.noise_multiplier is not None
    assert told.run_config["ledger"] == str(tmp_path / "run" / "ledger.sqlite")
    assert told.node_config == {"partition-id": 3}


def test_without_a_folder_it_is_one_named_by_flowers_run_whoever_asks(
    app: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert app._folder(context("")).path == tmp_path / "veil" / "flower" / "4711"
    assert app._folder(context("", node_id=99)).path == app._folder(context("")).path
    assert app._folder(context("", run_id=5)).path != app._folder(context("")).path
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert app._folder(context("")).path == tmp_path / ".local" / "state" / "veil" / "flower" / "4711"


def test_a_relative_folder_is_refused_for_each_process_has_its_own_place(app: ModuleType) -> None:
    with pytest.raises(UsageError, match=r"^out = 'runs/mine': give an absolute path"):
        app._folder(context("runs/mine"))
