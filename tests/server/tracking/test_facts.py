"""What trackers get is what the run's own files print, and names nobody (principle 1, rule 3)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from server.run_folder import RunFolder
from server.tracking import RunFacts, Tracking
from server.tracking.facts import Figures, Words, of_plan, of_round
from shared_models.plan import Plan
from shared_models.plan_file import plan_from
from shared_models.resolve import resolve
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

SMALL = ("model.name=mlp", "model.options.hidden=[8]", "federation.rounds=3", "training.steps=2")


class Remembering:
    """Keeps all that it is told, and whether the run had ended by then."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.facts: RunFacts | None = None
        self.plan: Mapping[str, float | str] = {}
        self.rounds: list[tuple[int, Figures]] = []
        self.early: list[int] = []
        self.figures: Figures = {}
        self.words: Words = {}

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        self.facts, self.plan = facts, plan

    def round(self, number: int, figures: Figures) -> None:
        self.rounds.append((number, figures))
        if not self.folder.summary.is_file():
            self.early.append(number)

    def end(self, figures: Figures, words: Words) -> None:
        self.figures, self.words = figures, words


def tracked(plan: Plan, path: Path) -> Remembering:
    folder = RunFolder(path)
    seen = Remembering(folder)
    tracking = Tracking({"memory": lambda: seen}, folder=folder, warn=pytest.fail)
    start_run(plan, path, Settings(engine="inline", observer=tracking))
    tracking.ended()
    return seen


def at(document: Any, key: str) -> Any:
    for name in key.split("."):
        document = document[name]
    return document


MODES = {
    "local": (),
    "no privacy": ("privacy.trust=none",),
    "central, secret cohorts": (
        "privacy.unit=client",
        "privacy.trust=central",
        "federation.cohort.sampling=poisson",
        "federation.cohort.rate=0.5",
    ),
    "secure sums": ("privacy.unit=client", "privacy.trust=distributed", "privacy.epsilon=40"),
    "counts at clients": ("evaluation.where=clients",),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_figure_is_one_that_the_runs_files_print(mode: str, tmp_path: Path) -> None:
    plan = resolve(find_plan("digits", (*SMALL, *MODES[mode])))
    seen = tracked(plan, tmp_path / "run")
    lines = RunFolder(tmp_path / "run").read_metrics()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [number for number, _ in seen.rounds] == [1, 2, 3]
    for line, (_, figures) in zip(lines, seen.rounds, strict=True):
        assert figures, "something is told"
        assert {f"evaluation.{name}" for name in line["evaluation"]} <= {*figures}, "and every metric there is now"
        assert all(at(line, key) == value for key, value in figures.items())
    assert seen.figures["rounds"] == 3
    assert all(at(summary, key) == value for key, value in seen.figures.items())
    codes = seen.words.pop("privacy.withdrawn")
    assert codes.split(", ") == [remark["code"] for remark in summary["privacy"]["withdrawn"]]
    assert all(at(summary, key) == value for key, value in seen.words.items())
    written = plan.model_dump(mode="json")
    for key, value in seen.plan.items():
        assert str(at(written, key)).strip("[]").replace("'", "").lower() == str(value).lower()
    assert seen.facts == RunFacts(run="run", name="digits", plan_digest=plan.digest(), setting="simulation", done=0)
    if plan.is_private:  # principle 3: an epsilon never stands alone
        assert {"privacy.unit", "privacy.trust", "privacy.relation", "privacy.accountant", "privacy.selection"} <= {
            *seen.words
        }
        assert {"privacy.epsilon_max", "privacy.delta"} <= {*seen.figures}


def test_of_secret_cohorts_nothing_of_who_took_part_is_told_nor_when_a_round_was_over(tmp_path: Path) -> None:
    """Rule 3: a library writes down when it was told, and how long a round takes tells of its size."""
    plan = resolve(find_plan("digits", (*SMALL, *MODES["central, secret cohorts"])))
    assert plan.has_secret_cohorts
    seen = tracked(plan, tmp_path / "run")
    assert seen.early == []
    for _, figures in seen.rounds:
        assert not {"seconds", "cohort", "updates", "bytes_up", "bytes_down", "train_loss"} & {*figures}
    assert not {"seconds.first_round", "bytes.up", "bytes.down"} & {*seen.figures}


def test_without_secret_cohorts_rounds_are_told_as_they_come(tmp_path: Path) -> None:
    plan = resolve(find_plan("digits", SMALL))
    folder, heard = RunFolder(tmp_path / "run"), threading.Event()
    before_the_end: list[bool] = []

    class Hears(Remembering):
        def round(self, number: int, figures: Figures) -> None:
            super().round(number, figures)
            heard.set()

    class Waits(Tracking):
        def round_done(self, record: Any) -> None:
            super().round_done(record)
            before_the_end.append(heard.wait(60))

    tracking = Waits({"memory": lambda: Hears(folder)}, folder=folder, warn=pytest.fail)
    start_run(plan, folder.path, Settings(engine="inline", observer=tracking))
    tracking.ended()
    assert before_the_end == [True, True, True]


def natural(folder: Path) -> Plan:
    """A plan whose clients have names, with records at a path."""
    rows = "".join(f"{20 + i % 60},{('Zanzibar', 'Quito')[i % 2]},{'yes' if i % 3 else 'no'}\n" for i in range(80))
    (folder / "secret-place.csv").write_text("age,ward,outcome\n" + rows)
    return resolve(
        plan_from(
            {
                "name": "wards",
                "data": {
                    "name": "csv",
                    "path": str(folder / "secret-place.csv"),
                    "partition": {"kind": "natural", "column": "ward"},
                    "card": {
                        "classes": ["no", "yes"],
                        "target": "outcome",
                        "columns": {
                            "age": {"kind": "numeric", "low": 0, "high": 100},
                        },
                    },
                },
                "model": {"name": "mlp"},
                "training": {"steps": 1},
                "privacy": {"epsilon": 8.0, "client_budgets": {"Zanzibar": 7.0}},
                "federation": {"rounds": 2, "min_clients": 1},
            },
            where="wards",
        )
    )


def test_no_clients_name_no_path_and_no_column_is_told(tmp_path: Path) -> None:
    seen = tracked(natural(tmp_path), tmp_path / "run")
    told = repr((seen.facts, seen.plan, seen.rounds, seen.figures, seen.words)).lower()
    assert "wards" in told
    clients = [row["id"] for row in json.loads((tmp_path / "run" / "summary.json").read_text())["privacy"]["clients"]]
    assert len(clients) == 2, "the run's own files do name them"
    for word in (*clients, "Zanzibar", "Quito", "secret-place", str(tmp_path), "outcome"):
        assert word.lower() not in told, word


def test_what_a_later_version_adds_to_a_round_reaches_no_tracker() -> None:
    judged = {"accuracy": 0.5, "accuracy_at_cleveland": 0.1}
    line = {"round": 1, "cohort": 3, "new": 5, "faults": [{"client": "a"}], "evaluation": judged}
    assert of_round(line) == {"cohort": 3.0, "evaluation.accuracy": 0.5}
    assert of_round({"evaluation": {"accuracy": float("nan"), "per_client": {"a": 0.5}}}) == {}


def test_budgets_of_single_clients_are_not_among_the_settings() -> None:
    plan = resolve(find_plan("digits", ("privacy.client_budgets.3=5",)))
    assert not [key for key in of_plan(plan) if "budget" in key or key.startswith("data.path")]
