"""Sweeps as they are played: on Ray Tune, killed and gone on with, with a trial that breaks, stopped early."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from security.errors import UsageError
from server.evaluation import LARGER_IS_BETTER
from simulations.sweep.book import Row, SweepFolder, in_order
from simulations.sweep.sweep import METRICS, Search, resume_sweep, start_sweep
from simulations.sweep.trials import Trial
from simulations.sweep.tuning import Engine
from veil.commands.sweep_console import cost_lines

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[3]
SMALL = ("model.name=mlp", "model.options.hidden=[8]", "training.steps=2", "federation.rounds=3")


class Watching:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[Row] = []
        self.rounds: list[tuple[str, int]] = []

    def begins(self, folder: SweepFolder, trials: Sequence[Trial], rows: Sequence[Row], terms: Any) -> None:
        self.waiting = [row.name for row in rows if row.state == "waiting"]

    def trial_began(self, row: Row) -> None:
        self.begun.append(row.name)

    def trial_round(self, row: Row) -> None:
        self.rounds.append((row.name, row.rounds))

    def trial_ended(self, row: Row) -> None:
        self.ended.append(row)


def search(*over: str, overrides: tuple[str, ...] = (), **named: Any) -> Search:
    return Search(plan="digits", overrides=(*SMALL, *overrides), over=over, **named)


def test_a_sweep_plays_every_trial_and_tells_what_the_search_costs(ray_cluster: Path, tmp_path: Path) -> None:
    watching, out = Watching(), tmp_path / "sweep"
    book = start_sweep(search("privacy.epsilon=1,4,16"), out, Engine(at_once=2, models={}), watching)
    assert book == json.loads((out / "sweep.json").read_text())
    assert book["state"] == "over"
    rows = {row["name"]: row for row in book["trials"]}
    assert sorted(watching.begun) == sorted(rows) == ["trial-01", "trial-02", "trial-03"]
    for name, row in rows.items():
        summary = json.loads((out / "trials" / name / "summary.json").read_text())
        assert row["value"] == summary["final"]["accuracy"]
        assert row["epsilon"] == summary["privacy"]["epsilon_max"]
        assert summary["plan_digest"] == row["digest"]
        assert summary["privacy"]["selection"] == "uncharged"
        assert (row["state"], row["rounds"]) == ("done", 3)
    values = [row["value"] for row in book["trials"]]
    assert values == sorted(values, reverse=True)
    (cost,) = book["search"]
    assert cost["epsilon"] > 16 > rows["trial-03"]["epsilon"] - 1e-9
    assert book["best"] == book["trials"][0]["name"]
    said = "\n".join(cost_lines(book))
    assert "whichever trial is kept" in said
    assert "chose the best trial too" in said
    drawing = ET.parse(out / "frontier.svg").getroot()
    assert len([one for one in drawing.iter() if one.tag.endswith("circle")]) == 3
    for stray in ("progress.csv", "result.json", "params.json"):  # of Tune's own loggers
        assert not list(out.rglob(stray))

    again = Watching()
    assert resume_sweep(out, Engine(models={}), again) == book
    assert again.begun == [], "what is over is not played again"


def test_a_broken_trial_is_told_by_name_and_the_others_go_on(ray_cluster: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    folder = SweepFolder(out)
    watching = Watching()

    class Breaks(Watching):
        def begins(self, *given: Any) -> None:
            super().begins(*given)
            # A run's folder that can't be made, from outside: of one trial alone.
            (out / "trials" / "trial-02").write_text("in the way")

    breaking = Breaks()
    book = start_sweep(search("training.learning_rate=0.1,0.2,0.3"), out, Engine(at_once=2, models={}), breaking)
    rows = {row["name"]: row for row in book["trials"]}
    assert {name: row["state"] for name, row in rows.items()} == {
        "trial-01": "done",
        "trial-02": "broken",
        "trial-03": "done",
    }
    assert "trial-02" in rows["trial-02"]["reason"]
    assert book["trials"][-1]["name"] == "trial-02"
    (cost,) = book["search"]
    assert cost["trials"] == ["trial-01", "trial-02", "trial-03"], "a broken one counts with all that it planned"
    assert cost["epsilon"] == cost["planned"]

    (out / "trials" / "trial-02").unlink()
    book = resume_sweep(out, Engine(models={}), watching)
    assert watching.begun == ["trial-02"], "what had broken is tried again, and nothing else"
    assert {row["state"] for row in book["trials"]} == {"done"}
    assert folder.run("trial-02").summary.is_file()


def test_a_trial_whose_process_dies_is_broken_too(ray_cluster: Path, tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text(
        "import os, torch\n"
        "class Net(torch.nn.Sequential):\n"
        "    def forward(self, x):\n"
        f"        if self[1].out_features == 6 and os.getpid() != {os.getpid()}:\n"
        "            raise RuntimeError('patient 17')\n"
        "        return super().forward(x)\n"
        "def net(form, width):\n"
        f"    if width == 5 and os.getpid() != {os.getpid()}:\n"
        "        os._exit(9)\n"
        "    return Net(torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, 10))\n"
    )
    models = {"mine": f"{tmp_path / 'dies.py'}:net"}
    asked = Search(
        plan="digits",
        overrides=("model.name=mine", "federation.rounds=1", "training.steps=1", "privacy.trust=none"),
        over=("model.options.width=4,5,6",),
    )
    book = start_sweep(asked, tmp_path / "sweep", Engine(at_once=2, models=models), Watching())
    rows = {row["settings"]["model.options.width"]: row for row in book["trials"]}
    assert rows["4"]["state"] == "done"
    assert (rows["5"]["state"], rows["5"]["reason"]) == ("broken", "its process ended")
    assert rows["6"]["state"] == "broken"
    assert "patient" not in json.dumps(book), "the text of an error could hold records"


def test_early_stopping_ends_trials_that_fall_behind_and_charges_what_they_planned(
    ray_cluster: Path, tmp_path: Path
) -> None:
    out, watching = tmp_path / "sweep", Watching()
    asked = search(
        # One at a time, the good one first: the others are compared with it.
        "training.learning_rate=0.2,1e-6,2e-6,3e-6",
        overrides=("federation.rounds=9", "privacy.epsilon=200"),
        early_stop=True,
    )
    book = start_sweep(asked, out, Engine(at_once=1, models={}), watching)
    rows = {row["settings"]["training.learning_rate"]: row for row in book["trials"]}
    assert rows["0.2"]["state"] == "done"
    early = [row for row in rows.values() if row["state"] == "stopped-early"]
    assert early, "a rate that teaches nothing falls behind"
    for row in early:
        assert 0 < row["rounds"] < 9
        assert row["epsilon"] == 200.0, "the planned rounds are what it costs (rule 4)"
        assert not (out / "trials" / row["name"] / "summary.json").exists()
    (cost,) = book["search"]
    assert cost["epsilon"] == cost["planned"]
    assert book["best"] == rows["0.2"]["name"]
    again = Watching()
    resume_sweep(out, Engine(models={}), again)
    assert again.begun == [], "what was stopped stays so"


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """`kill -9` while trials play: those that are over keep their very files, the others go on from their rounds."""
    command = [
        *(sys.executable, "-m", "veil.main", "sweep", "digits", "--out", "sweep", "--at-once", "1"),
        *("--over", "training.learning_rate=0.1,0.2,0.3", "--charge-search"),
        *(part for text in (*SMALL, "federation.rounds=8") for part in ("--set", text)),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("trial-02  begins"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    out = tmp_path / "sweep"
    before = {path: path.read_bytes() for path in (out / "trials" / "trial-01").rglob("*.*") if path.is_file()}
    plans = {path.name: path.read_bytes() for path in (out / "plans").iterdir()}
    assert not (out / "trials" / "trial-03").exists()
    again = subprocess.run(
        [sys.executable, "-m", "veil.main", "sweep", "--resume", "sweep", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    book = json.loads(again.stdout)
    assert book["state"] == "over"
    assert {row["state"] for row in book["trials"]} == {"done"}
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name: path.read_bytes() for path in (out / "plans").iterdir()} == plans
    for row in book["trials"]:
        rounds = [line["round"] for line in SweepFolder(out).run(row["name"]).read_metrics()]
        assert rounds == list(range(1, 9)), "each round once"
    (cost,) = book["search"]
    assert cost["epsilon"] <= 8.0
    assert cost["planned"] == cost["epsilon"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (search("training.steps=1,2", metric="acuracy"), "--metric acuracy: no such metric"),
        (search("evaluation.metric=accuracy,loss"), "name it with --metric"),
        (search("evaluation.where=server,clients"), "figures of unlike records"),
        (search("training.steps=1", metric="auc", overrides=("evaluation.where=clients",)), "allowed: accuracy"),
        (search("data.partition.clients=5,9999"), "data.partition.clients = 9999 is more than"),
    ],
)
def test_what_can_not_be_compared_or_loaded_is_found_before_anything_starts(
    asked: Search, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as error:
        start_sweep(asked, tmp_path / "sweep", Engine(models={}), Watching())
    assert said in str(error.value)
    assert not (tmp_path / "sweep").exists()


def test_a_plan_that_was_changed_is_not_gone_on_with(ray_cluster: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    start_sweep(search("training.steps=1", overrides=("privacy.trust=none",)), out, Engine(models={}), Watching())
    with pytest.raises(UsageError, match="holds a sweep or a run already"):
        start_sweep(search("training.steps=1"), out, Engine(models={}), Watching())
    plan = out / "plans" / "trial-01.toml"
    plan.write_text(plan.read_text().replace("learning_rate = 0.1", "learning_rate = 0.9"))
    with pytest.raises(UsageError, match="is not the plan that the sweep began with"):
        resume_sweep(out, Engine(models={}), Watching())
    with pytest.raises(UsageError, match="no sweep here"):
        resume_sweep(tmp_path / "nowhere", Engine(models={}), Watching())


def test_rows_are_ordered_by_the_metric_and_what_has_none_comes_last() -> None:
    def row(name: str, value: float | None, state: Any = "done") -> Row:
        return Row(name=name, settings={}, digest="", state=state, value=value)

    rows = [row("a", 0.1), row("b", None), row("c", 0.3), row("d", 0.9, "stopped-early"), row("e", None, "broken")]
    assert [one.name for one in in_order(rows, larger=True)] == ["c", "a", "b", "d", "e"]
    assert [one.name for one in in_order(rows, larger=False)] == ["a", "c", "b", "d", "e"]
    assert LARGER_IS_BETTER.items() <= METRICS.items()
