"""Leaving clients out in turn: who trains, who is judged on, what is kept, and what it would have cost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from client.datasets.partition import client_ids, client_records
from client.workplace import split_key
from privacy.accountant import epsilon
from security.errors import UsageError
from server.deployable import deployable
from server.evaluation import TestData, evaluator
from server.run_folder import RunFolder, read_parameters
from shared_models.plan import Plan
from shared_models.registry import build_for
from simulations import cross_validation as module
from simulations.cross_validation import FoldResult, cross_validate, fold_clients, fold_plan
from simulations.kept import keep, read_kept
from simulations.run import Settings
from simulations.scenarios import find_plan
from tests.veil.test_main import run as veil

INLINE = Settings(engine="inline")
QUICK = ("evaluation.baselines=false", "federation.rounds=2", "training.steps=2", "model.name=linear", "model.options=")
HOSPITALS = ("cleveland", "hungary", "switzerland", "va-long-beach")
SIZES = {"cleveland": 303, "hungary": 294, "switzerland": 123, "va-long-beach": 200}


def plan_of(*overrides: str, name: str = "hospitals-plain") -> Plan:
    return find_plan(name, (*QUICK, *overrides))


# --- data.leave_out


def test_who_is_left_out_has_no_records_in_it_and_the_others_have_theirs() -> None:
    plan = fold_plan(plan_of(), ("hungary",))
    key = split_key(plan)
    found = client_records(plan.data, seed=plan.seed, split_key=key)
    whole = client_records(plan.data.model_copy(update={"leave_out": None}), seed=plan.seed, split_key=key)
    assert set(found) == set(HOSPITALS) - {"hungary"}
    for client, own in found.items():
        assert torch.equal(own.x, whole[client].x)
        assert len(own) == SIZES[client]  # nothing is held out of a fold


def test_drawn_clients_are_the_same_whoever_is_left_out() -> None:
    plan = plan_of(name="digits-plain")
    key = split_key(plan)
    whole = client_records(plan.data, seed=plan.seed, split_key=key)
    left = plan.data.model_copy(update={"leave_out": ("3", "7")})
    found = client_records(left, seed=plan.seed, split_key=key)
    assert tuple(found) == client_ids(left, seed=plan.seed, split_key=key) == tuple("01245689")
    assert left.clients == 8
    assert all(torch.equal(found[client].x, whole[client].x) for client in found)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("digits-plain", "['10']", r"no client has the id '10'; allowed: '0' to '9'"),
        ("digits-plain", "['1', '1']", "twice"),
        ("digits-plain", str([str(i) for i in range(10)]), "all clients"),
    ],
)
def test_nobody_else_can_be_left_out(name: str, value: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        plan_of(f"data.leave_out={value}", name=name)


def test_natural_clients_are_known_once_data_is_read() -> None:
    for left_out, error in ((("hungaria",), "did you mean 'hungary'"), (HOSPITALS, "names all clients")):
        plan = plan_of().data.model_copy(update={"leave_out": left_out})
        with pytest.raises(UsageError, match=error):
            client_records(plan, seed=7, split_key=b"key")


def test_a_plan_that_leaves_nobody_out_keeps_its_digest_and_a_deployment_leaves_nobody_out() -> None:
    plan = plan_of()
    assert plan.digest() == "740e03e1e81443db30905b8503fab355db115ff2e859515047c76b0306742fe1"
    fold = plan.model_copy(update={"data": plan.data.model_copy(update={"leave_out": ("hungary",)})})
    assert fold.digest() != plan.digest()
    with pytest.raises(UsageError, match="leave_out is for simulations"):
        deployable(fold, ["a", "b", "c"])


# --- folds


def test_each_client_is_left_out_once_whatever_the_number_of_folds() -> None:
    plan = plan_of(name="digits-plain")
    for folds in (None, 2, 3, 10):
        parts = fold_clients(plan, folds)
        assert sorted(client for part in parts for client in part) == list("0123456789")
        assert len(parts) == (folds or 10)
    assert fold_clients(plan, 3) == fold_clients(plan, 3)
    assert fold_clients(plan, 3) != fold_clients(plan_of("seed=8", name="digits-plain"), 3)


def test_models_that_are_the_clients_own_are_not_validated(tmp_path: Path) -> None:
    head = plan_of("personal.kind=head", "evaluation.where=clients", name="digits-plain")
    with pytest.raises(UsageError, match=r"personal\.kind = 'head'"):
        cross_validate(head, None, tmp_path, Settings(engine="inline"))
    assert fold_plan(plan_of("personal.kind=ditto", name="digits-plain"), ["3"]).personal is None


def test_a_cohort_that_a_fold_has_no_clients_for_is_refused_in_a_line() -> None:
    plan = plan_of('federation.cohort={sampling="fixed", size=10}', name="digits-plain")
    with pytest.raises(UsageError, match=r"a fold of 9 clients: .*cohort\.size = 10 is more than"):
        fold_plan(plan, ["3"])


def test_folds_that_cannot_be_are_refused() -> None:
    for folds, error in ((1, "give 2 to 10"), (11, "give 2 to 10")):
        with pytest.raises(UsageError, match=error):
            fold_clients(plan_of(name="digits-plain"), folds)
    with pytest.raises(UsageError, match="give --folds K"):
        fold_clients(plan_of("data.partition={kind='iid', clients=30}", name="digits-plain"), None)
    with pytest.raises(UsageError, match="nobody would train"):
        fold_clients(plan_of("data.partition={kind='iid', clients=1}", name="digits-plain"), None)


def test_a_fold_does_not_look_at_what_it_is_about() -> None:
    plan = fold_plan(plan_of("evaluation.target=0.9", "evaluation.patience=3"), ("hungary",))
    evaluation = plan.evaluation
    assert (evaluation.where, evaluation.target, evaluation.patience) == ("none", None, None)
    assert plan.data.test_fraction == 0


def test_secure_sums_need_as_many_clients_as_a_fold_has() -> None:
    plan = find_plan("hospitals-secure", ("evaluation.baselines=false",))
    with pytest.raises(UsageError, match=r"--set secure_sum\.clients=3"):
        fold_plan(plan, ("hungary",))
    assert fold_plan(find_plan("hospitals-secure", ("secure_sum.clients=3",)), ("hungary",)).secure.clients == 3


def test_a_model_is_judged_on_all_records_of_the_client_it_never_saw(tmp_path: Path) -> None:
    result = cross_validate(plan_of(), None, tmp_path / "cv", INLINE)
    assert {client: row["examples"] for client, row in result.rows.items()} == SIZES
    for fold in result.folds:
        (client,) = fold.left_out
        folder = RunFolder(tmp_path / "cv" / f"fold-{fold.fold}")
        plan = folder.read_plan()
        assert plan.data.leave_out == (client,)
        whole = plan.data.model_copy(update={"leave_out": None})
        records = client_records(whole, seed=plan.seed, split_key=split_key(plan))[client]
        judged = evaluator(plan, build_for(plan), TestData(records.x, records.y))(read_parameters(folder.model))
        row = result.rows[client]
        assert {name: row[name] for name in judged} == judged
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    told = json.loads((tmp_path / "cv" / "cross-validation.json").read_text())
    assert told == json.loads(json.dumps(result.to_json()))
    mean = sum(row["accuracy"] for row in result.rows.values()) / 4
    assert told["over_clients"]["accuracy"]["mean"] == pytest.approx(mean)
    worst = told["over_clients"]["loss"]
    assert worst["at_worst"] == max(row["loss"] for row in result.rows.values())
    page = (tmp_path / "cv" / "cross-validation.html").read_text()
    assert "va-long-beach" in page
    assert "No privacy" in page


def test_finished_folds_are_not_played_again_and_one_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[Path] = []
    start = module.start_run

    def counting(plan: Plan, out: Path, settings: Settings) -> Any:
        played.append(out)
        if len(played) == 3:
            raise KeyboardInterrupt
        return start(plan, out, settings)

    monkeypatch.setattr(module, "start_run", counting)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(plan_of(), None, tmp_path / "cv", INLINE)
    first = read_kept(tmp_path / "cv" / "folds.jsonl", FoldResult)
    assert [fold.left_out for fold in first] == [["cleveland"], ["hungary"]]
    result = cross_validate(plan_of(), None, tmp_path / "cv", INLINE)
    assert [path.name for path in played] == ["fold-0", "fold-1", "fold-2", "fold-2", "fold-3"]
    assert result.folds[:2] == first
    again = cross_validate(plan_of(), None, tmp_path / "cv", INLINE)
    assert len(played) == 5
    assert again == result


def test_another_plans_folder_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "cv"
    module._begin(plan_of(), out)
    with pytest.raises(UsageError, match="folds of another plan"):
        cross_validate(plan_of("seed=8"), None, out, INLINE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty"):
        cross_validate(plan_of(), None, tmp_path / "full", INLINE)


def test_what_a_data_owner_would_have_paid_is_all_folds_but_its_own(tmp_path: Path) -> None:
    plan = plan_of("training.steps=2", name="hospitals")
    result = cross_validate(plan, 2, tmp_path / "cv", INLINE)
    assert [sorted(fold.left_out) for fold in result.folds] == [list(part) for part in fold_clients(plan, 2)]
    assert result.privacy is not None
    plans = [fold_plan(plan, part) for part in fold_clients(plan, 4)]
    four = module._privacy(plans)
    assert four is not None
    release = plans[0].train_release()
    assert release is not None
    expected = epsilon(Counter({release: 2 * 3}), 1e-4).epsilon
    assert four["epsilon_all_folds"] == pytest.approx(expected)
    assert four["folds_a_client"] == 3
    assert result.privacy["epsilon_all_folds"] == pytest.approx(epsilon({release: 2}, 1e-4).epsilon)
    assert result.privacy["epsilon_a_fold"] < four["epsilon_all_folds"] < 3 * result.privacy["epsilon_a_fold"]
    page = (tmp_path / "cv" / "cross-validation.html").read_text()
    assert "would have paid epsilon" in page


def test_the_command_prints_a_table_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [text for one in QUICK for text in ("--set", one)]
    out = str(tmp_path / "cv")
    assert veil("cross-validate", "hospitals-plain", *sets, "--folds", "2", "--out", out) == 0
    captured = capsys.readouterr()
    assert "mean over clients" in captured.out
    assert "fold 2 of 2" in captured.err
    assert veil("cross-validate", "hospitals-plain", *sets, "--folds", "2", "--out", out, "--json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""  # all folds were there
    assert len(json.loads(captured.out)["folds"]) == 2
    assert veil("cross-validate", "hospitals-plain", *sets, "--folds", "9", "--out", str(tmp_path / "x")) == 2


# --- kept lines


def test_a_line_that_was_cut_off_spoils_neither_those_before_nor_the_next(tmp_path: Path) -> None:
    path = tmp_path / "folds.jsonl"
    one = FoldResult(fold=0, digest="a", left_out=["x"], clients={}, epsilon=None, stopped=None, seconds=1.0)
    keep(path, one)
    with path.open("a") as file:
        file.write('{"fold": 1, "dig')
    assert read_kept(path, FoldResult) == [one]
    keep(path, one)
    assert read_kept(path, FoldResult) == [one, one]
    assert read_kept(tmp_path / "none.jsonl", FoldResult) == []
