"""`veil ledger`, `veil budget` and `veil report`: what a person sees, on one small run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.accountant import epsilon
from privacy.mechanisms import Gaussian
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan
from veil.main import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run of two rounds and three clients."""
    folder = tmp_path_factory.mktemp("run") / "run"
    overrides = ("model.name=mlp", "federation.rounds=2", "data.partition.clients=3", "training.steps=2")
    start_run(find_plan("digits", overrides), folder, Settings(engine="inline"))
    return folder


@pytest.fixture
def veil(capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, standard output and standard error of a command."""

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_show_says_what_each_scope_has_spent(veil: Command, run: Path) -> None:
    code, out, _ = veil("ledger", "show", run / "ledger.sqlite")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split()[:3] == ["scope", "unit", "trust"]
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]


def test_show_of_a_scope_lists_its_entries(veil: Command, run: Path) -> None:
    code, out, _ = veil("ledger", "show", run / "ledger.sqlite", "--scope", "1")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()] == ["open", "policy", *["reserve", "commit"] * 2]


def test_an_unknown_scope_is_named_with_those_there_are(veil: Command, run: Path) -> None:
    code, _, err = veil("ledger", "show", run / "ledger.sqlite", "--scope", "9")
    assert code == 2
    assert err.strip().endswith("no scope '9'; there are: 0, 1, 2")


def test_verify_finds_a_good_ledger_good_and_knows_its_statement(veil: Command, run: Path) -> None:
    code, out, _ = veil("ledger", "verify", run / "ledger.sqlite", "--statement", run / "statements" / "1.json")
    assert code == 0
    assert out.splitlines()[-1] == "all is well"


def test_verify_reports_a_changed_byte(veil: Command, run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    code, *_ = veil("ledger", "export", run / "ledger.sqlite", "--out", tmp_path / "lines")
    assert code == 0
    assert veil("ledger", "import", tmp_path / "lines", copy)[0] == 0
    data = bytearray(copy.read_bytes())
    data[data.index(b'"steps":2') + 8] = ord("1")
    copy.write_bytes(bytes(data))
    code, _, err = veil("ledger", "verify", copy)
    assert code == 1
    assert err.startswith("problem: ")


def test_verify_finds_a_rolled_back_copy_by_a_statement(veil: Command, run: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines"
    assert veil("ledger", "export", run / "ledger.sqlite", "--scope", "1", "--out", lines)[0] == 0
    kept = lines.read_text(encoding="utf-8").splitlines()[:3]
    last = json.loads(kept[-1])
    closing = {"head": {"scope": "1", "position": last["position"], "hash": last["hash"]}}
    kept.append(json.dumps(closing, sort_keys=True, separators=(",", ":")))
    lines.write_text("\n".join(kept), encoding="utf-8")
    copy = tmp_path / "copy.sqlite"
    assert veil("ledger", "import", lines, copy)[0] == 0
    assert veil("ledger", "verify", copy)[0] == 0  # a chain alone can't show it
    code, _, err = veil("ledger", "verify", copy, "--statement", run / "statements" / "1.json")
    assert code == 1
    assert "rolled back" in err


def test_a_wrong_anchor_is_one_line(veil: Command, run: Path) -> None:
    code, _, err = veil("ledger", "verify", run / "ledger.sqlite", "--anchor", "1:x:y")
    assert code == 2
    assert len(err.splitlines()) == 1


def test_what_is_no_ledger_is_one_line(veil: Command, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, this is no ledger at all, but long enough to look at " * 20)
    for command in (("ledger", "show"), ("ledger", "export"), ("budget", "status")):
        code, _, err = veil(*command, tmp_path / "text")
        assert code == 1
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err


def test_recover_charges_again_what_a_statement_proves(veil: Command, run: Path, tmp_path: Path) -> None:
    """The backup is from before round 2; the statement is from after it."""
    lines = tmp_path / "lines"
    veil("ledger", "export", run / "ledger.sqlite", "--scope", "0", "--out", lines)
    kept = lines.read_text(encoding="utf-8").splitlines()[:4]
    last = json.loads(kept[-1])
    closing = {"head": {"scope": "0", "position": last["position"], "hash": last["hash"]}}
    lines.write_text("\n".join([*kept, json.dumps(closing, sort_keys=True, separators=(",", ":"))]), encoding="utf-8")
    backup = tmp_path / "backup.sqlite"
    assert veil("ledger", "import", lines, backup)[0] == 0
    code, out, _ = veil("ledger", "recover", backup, "0", "--statement", run / "statements" / "0.json")
    assert code == 0
    assert "1 charges entered again" in out
    before = veil("budget", "status", run / "ledger.sqlite")[1].splitlines()[1].split()
    after = veil("budget", "status", backup)[1].splitlines()[1].split()
    assert after[3] == before[3]


def test_status_says_what_is_left(veil: Command, run: Path) -> None:
    code, out, _ = veil("budget", "status", run / "ledger.sqlite")
    assert code == 0
    assert out.splitlines()[1].split()[:3] == ["0", "record", "local"]


def test_budget_plan_says_what_is_affordable_and_draws_it(veil: Command, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"
    code, out, _ = veil("budget", "plan", "digits", "--budget", 4, "--noise", 2, "--noise", 4, "--plot", plot)
    assert code == 0
    assert "rounds within 4" in out
    assert plot.read_text(encoding="utf-8").count("<polyline") == 3  # two noise multipliers and the budget


def test_budget_plan_prices_secure_sums_by_the_noise_of_the_honest(veil: Command) -> None:
    secure = ("--set", "privacy.unit=client", "--set", "privacy.trust=distributed")
    code, out, _ = veil("budget", "plan", "digits", *secure, "--budget", 4, "--noise", 0.001, "--noise", 8)
    assert code == 0
    head, _, *rows = out.splitlines()
    assert "rounds of one secure sum with the noise of 5 honest clients" in head
    assert "(add or remove one, PLD)" in head
    assert rows[0].split() == ["0.001", *["-"] * 5, "0"]  # so little noise has no price
    assert int(rows[1].split()[-1]) > 0


CORRELATED = (
    "privacy.unit=client",
    "privacy.trust=central",
    "privacy.correlated={ band = 5 }",
    "federation.cohort={ sampling = 'fixed', size = 2 }",
)


def test_budget_plan_prices_a_run_with_correlated_noise_as_one_release(veil: Command) -> None:
    keys = [word for key in CORRELATED for word in ("--set", key)]
    code, out, _ = veil("budget", "plan", "digits", *keys, "--budget", 4, "--noise", 0.5, "--noise", 2)
    assert code == 0
    head, _, *rows = out.splitlines()
    assert "digits: runs of 20 rounds with noise of 5 bands, each client" in head
    assert "at most 4 times, 5 rounds apart; epsilon at delta" in head
    for row, noise in zip(rows[:2], (0.5, 2.0), strict=True):
        price = epsilon([Gaussian(noise_multiplier=noise)], 1e-5).epsilon
        assert row.split()[:2] == [f"{noise:g}", f"{price:.3f}"]
    assert [int(row.split()[2]) for row in rows[:2]] == [0, 3]
    code, _, err = veil("budget", "plan", "digits", *keys, "--rounds", 30)
    assert code == 2
    assert "--rounds: with privacy.correlated a run is one release" in err


JOINT = (
    "training.momentum=0.0",
    "training.steps=1",
    "training.sample_rate=1.0",
    "training.expected_batch_size=100",
    "privacy.trust=distributed",
    "federation.rounds=30",
)


def test_budget_plan_prices_joint_steps_of_records_and_persons_by_the_plans_own_multiplier(veil: Command) -> None:
    joint = [word for key in JOINT for word in ("--set", key)]
    code, out, _ = veil("budget", "plan", "digits", *joint, "--budget", 4, "--noise", 8, "--rounds", 30)
    assert code == 0
    head, _, record = out.splitlines()[:3]
    assert "rounds of one secure sum with the noise of 5 honest clients" in head
    assert "(add or remove one, PLD)" in head
    people = ("--set", "data.person_column=who", "--set", "data.max_rows_per_person=4")
    _, out, _ = veil("budget", "plan", "digits", *joint, *people, "--budget", 4, "--noise", 32, "--rounds", 30)
    person = out.splitlines()[2]
    assert (record.split()[0], person.split()[0]) == ("8", "32")
    # Four records move a sum by four clipping norms: four times the noise has the price, but for the rounding.
    assert float(record.split()[1]) == pytest.approx(float(person.split()[1]), rel=2e-3)


def test_budget_plan_counts_what_a_ledger_has_spent(veil: Command, run: Path) -> None:
    code, out, _ = veil("budget", "plan", "digits", "--ledger", run / "ledger.sqlite", "--scope", "0", "--noise", 4)
    assert code == 0
    assert "with what the ledger has spent" in out
    assert "would let 0 of this plan's 20 rounds through" in out  # its balance belongs to the plan that was played


@pytest.mark.parametrize(
    "arguments",
    [("plan", "digits", "--set", "privacy.trust=none"), ("plan", "digits", "--budget", -1)],
    ids=["no privacy", "negative budget"],
)
def test_what_has_no_budget_is_one_line(veil: Command, arguments: tuple[object, ...]) -> None:
    code, _, err = veil("budget", *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1


def test_a_run_ends_with_its_report_and_report_writes_it_again(veil: Command, run: Path) -> None:
    made = run / "report.html"
    assert made.is_file()
    made.unlink()
    code, out, _ = veil("report", run, "--lang", "zh")
    assert code == 0
    assert out.strip() == f"report: {made}"
    assert 'lang="zh' in made.read_text(encoding="utf-8")


def test_several_runs_are_compared(veil: Command, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    code, out, _ = veil("report", run, other, "--out", tmp_path)
    assert code == 0
    assert (tmp_path / "comparison.html").is_file()
    assert "comparison.html" in out


def test_a_summary_of_another_version_is_read_or_refused_in_one_line(veil: Command, run: Path, tmp_path: Path) -> None:
    early = tmp_path / "early"
    early.mkdir()
    for name in ("plan.toml", "metrics.jsonl"):
        shutil.copy(run / name, early)
    summary = json.loads((run / "summary.json").read_text())
    for kind in ("withdrawn", "disclosed"):
        summary["privacy"][kind] = [remark["text"] for remark in summary["privacy"][kind]]
    del summary["privacy"]["assumptions"], summary["setting"]
    (early / "summary.json").write_text(json.dumps(summary))
    assert veil("report", early)[0] == 0
    assert json.loads((early / "report.json").read_text())["status"] == "simulated"
    del summary["privacy"]["clients"][0]["record_epsilon"]
    (early / "summary.json").write_text(json.dumps(summary))
    code, _, err = veil("report", early)
    assert (code, err.count("\n")) == (2, 1)
    assert "summary.json: lacks 'record_epsilon'" in err


def test_a_ledger_has_a_report_of_its_own(veil: Command, run: Path, tmp_path: Path) -> None:
    statement = run / "statements" / "2.json"
    code, *_ = veil("report", "--ledger", run / "ledger.sqlite", "--statement", statement, "--out", tmp_path / "site")
    assert code == 0
    facts = json.loads((tmp_path / "site" / "report.json").read_text(encoding="utf-8"))
    assert facts["kind"] == "ledger"
    assert [item["verified"] for item in facts["statements"]] == [True]


@pytest.mark.parametrize(
    "arguments",
    [(), ("nowhere",), ("--ledger", "nowhere.sqlite")],
    ids=["nothing", "no run", "no ledger"],
)
def test_what_has_no_report_is_one_line(
    veil: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = veil("report", *arguments)
    assert code in (1, 2)
    assert len(err.splitlines()) == 1


def test_budget_plan_prices_a_plan_on_a_network_of_ones_own(veil: Command) -> None:
    """Its numbers may enter a release: of secure sums, how many there are."""
    mine = (
        "--set",
        "model.name=mine",
        "--model",
        f"mine={Path(__file__).parents[1]}/shared_models/own_network.py:build",
    )
    code, out, _ = veil("budget", "plan", "digits", *mine, "--budget", 4, "--noise", 2)
    assert code == 0
    _, plain, _ = veil("budget", "plan", "digits", "--budget", 4, "--noise", 2)
    assert out == plain  # a network's shape moves no price of DP-SGD
    code, _, err = veil("budget", "plan", "digits", "--set", "model.name=mine")
    assert code == 2
    assert "unknown model" in err
