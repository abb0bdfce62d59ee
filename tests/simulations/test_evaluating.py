"""`veil evaluate`: a finished run's model in detail."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.datasets.heart_disease import mended
from security.errors import UsageError
from server.report import write_report
from server.run_folder import RunFolder
from shared_models.cards import KNOWN
from simulations.cross_validation import cross_validate
from simulations.evaluating import Question, evaluate_run
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from tests.veil.test_main import run as veil

FAST = ("evaluation.baselines=false", "federation.rounds=2", "training.steps=2")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "hospitals"
    start_run(find_plan("hospitals-plain", FAST), path, Settings(engine="inline"))
    return path


def test_its_figures_are_those_of_the_run(hospitals: Path) -> None:
    facts, page = evaluate_run(RunFolder(hospitals), Question(by="sex"))
    final = RunFolder(hospitals).read_summary()["final"]
    assert facts.accuracy is not None
    found = {"accuracy": facts.accuracy.value, "auc": facts.auc, "loss": facts.loss}
    assert found == pytest.approx({name: final[name] for name in found}, rel=1e-9)
    assert page == hospitals / "evaluation.html"
    assert json.loads(page.with_suffix(".json").read_text()) == facts.to_json()
    assert facts.groups is not None
    assert facts.clients is not None
    assert sum(row.n for row in facts.groups.rows) == sum(row.n for row in facts.clients.rows) == facts.n
    assert not facts.protected


def test_the_report_links_to_it_and_a_run_that_goes_on_forgets_it(hospitals: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(hospitals, tmp_path / "run"))
    folder.evaluation.unlink(missing_ok=True)
    assert "evaluation.html" not in write_report(folder).read_text()
    evaluate_run(folder, Question())
    for language in ("en", "zh"):
        assert '<a href="evaluation.html">' in write_report(folder, language=language).read_text()
    folder.drop_summary()
    assert not folder.evaluation.exists()
    assert not folder.evaluation.with_suffix(".json").exists()
    with pytest.raises(UsageError, match="not finished"):
        evaluate_run(folder, Question())


def test_it_can_be_judged_on_a_file_of_ones_own(hospitals: Path, tmp_path: Path) -> None:
    table = mended(KNOWN["heart-disease"])
    table.to_csv(tmp_path / "own.csv", index=False)
    facts, _ = evaluate_run(RunFolder(hospitals), Question(data=tmp_path / "own.csv", by="hospital"))
    assert (facts.source, facts.n, facts.clients) == ("file", 920, None)
    assert facts.groups is not None
    assert [(row.name, row.n) for row in facts.groups.rows] == [
        ("cleveland", 303), ("hungary", 294), ("switzerland", 123), ("va-long-beach", 200)
    ]  # fmt: skip


def test_with_clients_each_is_judged_on_what_it_holds_out(tmp_path: Path) -> None:
    plan = find_plan("hospitals-plain", (*FAST, "evaluation.where=clients", "evaluation.metric=accuracy"))
    start_run(plan, tmp_path / "run", Settings(engine="inline"))
    facts, _ = evaluate_run(RunFolder(tmp_path / "run"), Question())
    final = RunFolder(tmp_path / "run").read_summary()["final"]
    assert facts.source == "clients"
    assert facts.accuracy is not None
    assert facts.accuracy.value == pytest.approx(final["accuracy"])
    assert (facts.accuracy.low, facts.accuracy.high) == pytest.approx((final["accuracy_low"], final["accuracy_high"]))


def test_a_deployment_without_records_says_what_would_help(hospitals: Path, tmp_path: Path) -> None:
    folder = RunFolder(shutil.copytree(hospitals, tmp_path / "run"))
    summary: dict[str, Any] = folder.read_summary()
    folder.write_summary({**summary, "setting": "deployment"})
    facts, _ = evaluate_run(folder, Question())  # a set that comes with Veil has a test part
    assert facts.clients is None
    text = folder.plan.read_text()
    folder.plan.write_text(text.replace('where = "server"', 'where = "none"'))
    with pytest.raises(UsageError, match=r"released no counts by class.*--data FILE"):
        evaluate_run(folder, Question())


def test_the_command_prints_it_or_its_json(hospitals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert veil("evaluate", str(hospitals), "--by", "sex") == 0
    text = capsys.readouterr().out
    assert "by sex (rates of 'disease')" in text
    assert "gap in accuracy" in text
    assert str(hospitals / "evaluation.html") in text
    assert veil("evaluate", str(hospitals), "--by", "sex", "--json") == 0
    assert json.loads(capsys.readouterr().out)["groups"]["column"] == "sex"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--by", "sx"), "no column 'sx' (did you mean 'sex'?)"),
        (("--positive", "ill"), "--positive 'ill'"),
        (("--data", "nowhere.csv"), "does not exist"),
        (("--data", "nowhere.csv", "--format", "xml"), "xml"),
    ],
)
def test_what_cannot_be_is_one_line(
    hospitals: Path, arguments: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert veil("evaluate", str(hospitals), *arguments) == 2
    said = capsys.readouterr().err
    assert error in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


BY_CLASS = ("evaluation.where=clients", "evaluation.per_class=true", "evaluation.metric=accuracy")


@pytest.mark.parametrize("trust", ["local", "distributed"])
def test_counts_by_class_in_both_modes_that_have_them(trust: str, tmp_path: Path) -> None:
    """What left is in every client's books with its class and price, in the report, and can be judged by."""
    from privacy.ledger import Ledger
    from privacy.mechanisms import NoisyTable

    name = "hospitals" if trust == "local" else "hospitals-secure"
    once = ("evaluation.baselines=false", "federation.rounds=2", "evaluation.every=2", "privacy.noise=reproducible")
    plan = find_plan(name, (*BY_CLASS, *once))
    folder, _ = start_run(plan, tmp_path / "run", Settings(engine="inline"))
    summary, found = folder.read_summary(), folder.read_plan()
    assert summary["by_class"]["clients"] == 4
    release = NoisyTable(noise=10.0)
    assert found.evaluate_release() == release
    with Ledger.open(folder.ledger, read_only=True) as books:
        for client in ("cleveland", "hungary", "switzerland", "va-long-beach"):
            charged: dict[object, int] = {}
            for one in books.account(client, found.balance).plans:
                for kind, times in one.charged:
                    charged[kind] = charged.get(kind, 0) + times
            assert charged[release] == 1
    report = json.loads((folder.path / "report.json").read_text())
    assert {one["name"]: one["kind"] for one in report["released"]}["arrays.confusion"] == "charged"
    assert "noisy-table" in {one["mechanism"] for one in report["charged"]}
    assert not any(one["code"] == "books-agree" and one["status"] == "not-met" for one in report["conditions"])
    facts, _ = evaluate_run(folder, Question(released=True))
    assert (facts.source, facts.protected, facts.released and facts.released.clients) == ("released", True, 4)
    exact, _ = evaluate_run(folder, Question())
    assert exact.accuracy is not None
    assert facts.accuracy is not None
    assert facts.accuracy.low <= exact.accuracy.value <= facts.accuracy.high  # the run's noise is reproducible
    folder.write_summary({**summary, "setting": "deployment"})
    assert evaluate_run(folder, Question())[0] == replace(facts, setting="deployment")
    with pytest.raises(UsageError, match="leave out --by"):
        evaluate_run(folder, Question(by="sex"))


def test_a_run_that_releases_statistics_has_no_model_to_judge(tmp_path: Path) -> None:
    text = """
    name = "counted"
    [data]
    name = "heart-disease"
    partition = { kind = "natural", column = "hospital" }
    [statistics]
    [privacy]
    trust = "local"
    epsilon = 4.0
    [federation]
    rounds = 1
    """
    (tmp_path / "counted.toml").write_text(text)
    plan = find_plan(str(tmp_path / "counted.toml"))
    folder, _ = start_run(plan, tmp_path / "run", Settings(engine="inline"))
    with pytest.raises(UsageError, match="no model to judge"):
        evaluate_run(folder, Question())
    with pytest.raises(UsageError, match="no model to validate"):
        cross_validate(plan, None, tmp_path / "folds", Settings(engine="inline"))
