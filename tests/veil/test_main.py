"""The command: exit codes, and errors of one line that say what, where and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from veil.main import main

FAST = ["--engine", "inline", "--set", "federation.rounds=1", "--set", "training.steps=1", "--set", "model.name=mlp"]


Veil = Callable[..., str]


def run(*arguments: str) -> int:
    """The exit code of `veil ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return int(stop.value.code or 0)


@pytest.fixture
def veil(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Veil:
    """Run `veil` in an empty folder and give what it printed; it must exit with `code`."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 0) -> str:
        found = run(*arguments)
        captured = capsys.readouterr()
        assert found == code, captured.err
        return captured.out

    return call


CSV = """
[data]
name = "csv"
path = "{path}"
partition = {{ kind = "iid", clients = 2 }}
[data.card]
classes = ["no", "yes"]
target = "outcom"
[data.card.columns]
age = {{ kind = "numeric", low = 0, high = 100 }}
[model]
name = "mlp"
"""


def csv_plan(folder: Path) -> str:
    (folder / "own.csv").write_text(
        "age,outcome\n" + "".join(f"{20 + i},{'yes' if i % 2 else 'no'}\n" for i in range(40))
    )
    (folder / "own.toml").write_text(CSV.format(path=folder / "own.csv"))
    return str(folder / "own.toml")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["simulate", "digit"], "digit: no such scenario or plan file; did you mean digits?"),
        (["simulate", "--set", "privacy.epsilom=3"], "digits: privacy.epsilom: unknown key; did you mean epsilon?"),
        (["simulate", "--set", "data.partition.clients=9999"], "data.partition.clients = 9999 is more than the 1441"),
        (["simulate", "--set", "data.name=mnst"], "data.card: did you mean mnist? data.name = 'mnst' needs"),
        (
            ["simulate", "fashion", "--set", "data.path=/nowhere"],
            "data.path: /nowhere does not exist; give the path of the data",
        ),
        (["simulate", "--resume", "nowhere"], "nowhere: no run here (plan.toml is missing)"),
        (["simulate", "--resume", "nowhere", "--repeat", "2"], "--resume goes on with the plan in the run's folder"),
        (["simulate", "--nope"], "No such option '--nope'."),
        (["simulat"], "No such command 'simulat'. Did you mean 'simulate'?"),
        (["plan", "chek", "digits"], "No such command 'chek'. Did you mean 'check'?"),
        (
            ["plan", "check", "fashion", "--data", "--set", "data.path=/nowhere"],
            "data.path: /nowhere does not exist; give the path of the data",
        ),
        (
            ["plan", "check", "--data", "digits", "--set", "data.partition.clients=9999"],
            "data.partition.clients = 9999 is more than the 1441",
        ),
        (["plan", "check", "missing.toml"], "missing.toml: can't be read (No such file or directory)"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"error: {line}")
    assert stderr.count("\n") == 1
    assert stderr.lower().count("did you mean") <= 1
    assert "Traceback" not in stderr


def test_an_unknown_target_of_a_csv_is_named_with_the_columns_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("simulate", csv_plan(tmp_path), "--engine", "inline") == 2
    stderr = capsys.readouterr().err
    assert "outcom" in stderr
    assert "outcome" in stderr
    assert stderr.count("\n") == 1


def test_an_unwritable_folder_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run("simulate", *FAST, "--out", str(tmp_path / "file" / "run")) == 2
    stderr = capsys.readouterr().err
    assert "can't write the run's folder" in stderr
    assert stderr.count("\n") == 1


def test_a_csv_of_ones_own_can_be_trained_on(veil: Veil, tmp_path: Path) -> None:
    assert "done: all 1 rounds" in veil("simulate", csv_plan(tmp_path), "--set", "data.card.target=outcome", *FAST)


def test_a_run_ends_with_a_summary_that_names_its_folder(veil: Veil) -> None:
    out = veil("simulate", "digits", *FAST, "--out", "here")
    assert "round 1/1  clients 10/10  accuracy" in out
    assert "folder: here" in out
    assert "record, not person" in out
    assert "simulated, not a claim" in out


def test_json_is_all_that_is_printed(veil: Veil) -> None:
    document = json.loads(veil("simulate", *FAST, "--json", "--out", "here"))
    assert document["folder"] == "here"
    assert document["rounds"] == 1


def test_an_exhausted_budget_is_exit_3(veil: Veil) -> None:
    out = veil("simulate", *FAST, "--set", "federation.rounds=4", "--set", "privacy.budget=7", code=3)
    assert "a privacy budget is exhausted" in out


def test_one_site_whose_budget_is_exhausted_ends_a_run_that_needs_it_with_exit_3(veil: Veil) -> None:
    few = [*FAST, "--set", "federation.rounds=4", "--set", "federation.min_clients=10", "--out", "here"]
    out = " ".join(veil("simulate", *few, "--set", "privacy.client_budgets.3=7", code=3).split())
    assert "a privacy budget is exhausted" in out
    assert "1 of 10 clients have no privacy budget left; 9 good updates are too few, the plan needs 10" in out
    again = veil("simulate", "--resume", "here", "--engine", "inline", code=3)
    assert "a privacy budget is exhausted" in again


def test_one_site_whose_budget_is_exhausted_ends_no_run_that_can_do_without_it(veil: Veil) -> None:
    out = veil("simulate", *FAST, "--set", "federation.rounds=4", "--set", "privacy.client_budgets.3=7")
    assert "done: all 4 rounds" in out
    assert "client 3: budget-exhausted" in out


def test_repeats_give_mean_and_deviation(veil: Veil) -> None:
    out = veil("simulate", *FAST, "--repeat", "2", "--set", "privacy.trust=none")
    assert "2 runs, seeds 7 to 8" in out
    assert "deviation" in out


def test_a_resumed_finished_run_shows_its_summary(veil: Veil) -> None:
    veil("simulate", *FAST, "--out", "here")
    assert "was finished already" in veil("simulate", "--resume", "here", "--engine", "inline")


def test_scenarios_and_models_are_listed(veil: Veil) -> None:
    assert "hospitals" in veil("scenarios")
    assert "vit" in veil("plan", "models")


def test_a_plan_is_checked_without_its_data_unless_asked(veil: Veil) -> None:
    out = veil("plan", "check", "digits")
    assert "digits: the plan is good (data not looked at; --data does; digest " in out
    assert "epsilon 8 at delta 1e-05" in out
    assert "digits: the plan is good (data for 10 clients; digest " in veil("plan", "check", "digits", "--data")
    veil("plan", "check", "fashion", "--set", "data.path=/nowhere")


SECURE = ("--set", "privacy.unit=client", "--set", "privacy.trust=distributed")


def test_a_plan_of_secure_sums_says_whom_its_epsilon_counts_on(veil: Veil) -> None:
    out = veil("plan", "check", "digits", *SECURE, "--set", "secure_sum.spare_rounds=2")
    assert "unit client, all that it holds; trust distributed" in out
    assert "rounds and 2 spare ones of one secure sum each" in out
    assert "(add/remove one, PLD), if of a cohort of 10 clients at least 5 honest ones are in the sum" in out
    assert "at most 1 collude with the server; a sum of fewer than 6 is not opened" in out
    assert "numbers in a ring of 32 bits" in out
    assert "NO MASKS" not in out


def test_a_plan_of_joint_steps_says_what_is_added_up_and_whether_under_masks(veil: Veil) -> None:
    keys = ("momentum=0.0", "steps=1", "sample_rate=0.5")
    joint = [word for key in keys for word in ("--set", f"training.{key}")] + ["--set", "privacy.trust=distributed"]
    out = veil("plan", "check", "digits", *joint)
    assert "unit record, not person; trust distributed" in out
    assert "one secure sum each (one step on the clipped gradients of Poisson batches of rate 0.5), noise" in out
    assert "; NO MASKS: the server sees what each client sends" in veil(
        "plan", "check", "digits", *joint, "--set", "secure_sum.masks=false"
    )


CENTRAL = ("--set", "privacy.unit=client", "--set", "privacy.trust=central")
ADAPTIVE = ("--set", "privacy.adaptive={}")
CORRELATED = (
    *CENTRAL,
    *("--set", "federation.cohort={ sampling = 'fixed', size = 2 }"),
    *("--set", "privacy.correlated={ band = 5 }"),
)


@pytest.mark.parametrize("trust", [CENTRAL, SECURE], ids=["central", "secure sums"])
def test_a_plan_whose_norm_adapts_says_what_that_costs_in_noise(veil: Veil, trust: tuple[str, ...]) -> None:
    out = veil("plan", "check", "digits", *trust, *ADAPTIVE)
    assert "the clipping norm goes from 1 towards the 0.5 quantile of the updates' lengths, within 0.001 and" in out
    noise, plain = re.findall(r"noise on the updates is ([0-9.]+) times the norm in place of ([0-9.]+)", out)[0]
    assert float(plain) < float(noise) < 1.06 * float(plain)
    assert "quantile" not in veil("plan", "check", "digits", *trust)


def test_a_plan_with_correlated_noise_says_that_the_run_is_one_release(veil: Veil) -> None:
    out = veil("plan", "check", "digits", *CORRELATED)
    assert "banded factorisation: 20 rounds, 5 bands" in out
    assert "each client at most 4 times, 5 rounds apart; add or remove one unit, PLD" in out
    assert "nobody may learn who takes part" not in out


@pytest.mark.parametrize(
    "overrides", [(), SECURE, CORRELATED, (*CENTRAL, *ADAPTIVE)], ids=["local", "secure sums", "correlated", "adaptive"]
)
def test_a_plan_that_is_shown_can_be_read_back(veil: Veil, tmp_path: Path, overrides: tuple[str, ...]) -> None:
    (tmp_path / "again.toml").write_text(veil("plan", "show", "digits", *overrides))
    veil("plan", "check", "again.toml")


def test_a_defect_of_ours_is_one_line_too_and_a_traceback_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> tuple[str, ...]:
        raise RuntimeError("a defect")

    monkeypatch.setattr("simulations.scenarios.scenario_names", broken)
    assert run("scenarios") == 1
    assert capsys.readouterr().err.startswith("error: RuntimeError: a defect (a defect of Veil's")
    with pytest.raises(RuntimeError, match="a defect"):
        main(["scenarios", "--debug"])
