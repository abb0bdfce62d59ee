"""A tracker that fails or hangs never ends a run: one warning line, without the words of its error."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from security.errors import UsageError
from server.observer import Silent
from server.run_folder import RunFolder
from server.tracking import RunFacts, Tracker, Tracking, TrackingWatcher, parse_trackers
from server.tracking.facts import Figures, Words
from server.watchers import Watcher
from shared_models.plan import Plan
from shared_models.resolve import resolve
from simulations.run import Settings, resume_run, start_run
from simulations.scenarios import find_plan
from tests.server.tracking.test_facts import Remembering

PLAN = ("model.name=mlp", "model.options.hidden=[8]", "federation.rounds=3", "training.steps=1", "privacy.trust=none")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return resolve(find_plan("digits", PLAN))


class Fails:
    """Raises where it is told to."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error = where, error

    def _maybe(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        self._maybe("start")

    def round(self, number: int, figures: Figures) -> None:
        self._maybe("round")

    def end(self, figures: Figures, words: Words) -> None:
        self._maybe("end")


def play(plan: Plan, path: Path, trackers: dict[str, Callable[[], Tracker]], **named: Any) -> list[str]:
    """Play a run with trackers; what was warned of."""
    warned: list[str] = []
    tracking = Tracking(trackers, folder=RunFolder(path), warn=warned.append, **named)
    _, outcome = start_run(plan, path, Settings(engine="inline", observer=tracking))
    tracking.ended()
    assert outcome.stopped is None
    return warned


@pytest.mark.parametrize("where", ["start", "round", "end"])
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on /secret"), ValueError("https://user:pw@host"), SystemExit(1)], ids=repr
)
def test_one_that_fails_is_warned_of_once_and_the_others_go_on(
    where: str, error: BaseException, plan: Plan, tmp_path: Path
) -> None:
    seen = Remembering(RunFolder(tmp_path / "run"))
    warned = play(plan, tmp_path / "run", {"bad": lambda: Fails(where, error), "good": lambda: seen})
    assert warned == [f"tracker bad: {type(error).__name__}; the run goes on without it"]
    assert [number for number, _ in seen.rounds] == [1, 2, 3]
    assert seen.words["setting"] == "simulation"


def test_one_that_can_not_be_made_is_warned_of(plan: Plan, tmp_path: Path) -> None:
    def make() -> Tracker:
        raise ConnectionError("refused")

    warned = play(plan, tmp_path / "run", {"bad": make})
    assert warned == ["tracker bad: ConnectionError; the run goes on without it"]


def test_one_that_hangs_holds_up_no_round_and_the_end_for_its_patience_only(plan: Plan, tmp_path: Path) -> None:
    free = threading.Event()

    class Hangs(Fails):
        def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
            free.wait()

    try:
        warned = play(plan, tmp_path / "run", {"slow": lambda: Hangs("", OSError())}, patience=0.2)
        assert warned == ["tracker slow: it has not answered within 0.2 s; the run goes on without it"]
    finally:
        free.set()


def test_a_run_that_goes_on_is_told_from_its_first_round(plan: Plan, tmp_path: Path) -> None:
    class Stops(Silent):
        def round_done(self, record: Any) -> None:
            if record.round == 2:
                raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, folder.path, Settings(engine="inline", observer=Stops()))
    seen = Remembering(folder)
    tracking = Tracking({"memory": lambda: seen}, folder=folder, warn=pytest.fail)
    resume_run(folder.path, Settings(engine="inline", observer=tracking))
    tracking.ended()
    assert seen.facts is not None
    assert seen.facts.done == 2
    assert [number for number, _ in seen.rounds] == [1, 2, 3]


def test_a_run_that_is_cut_off_has_an_end_without_figures(plan: Plan, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    ends: list[tuple[Figures, Words]] = []

    class Stops(Remembering):
        def end(self, figures: Figures, words: Words) -> None:
            ends.append((figures, words))

    class Breaks(Tracking):
        def round_done(self, record: Any) -> None:
            super().round_done(record)
            raise KeyboardInterrupt

    tracking = Breaks({"memory": lambda: Stops(folder)}, folder=folder, warn=pytest.fail)
    with pytest.raises(KeyboardInterrupt):
        start_run(plan, folder.path, Settings(engine="inline", observer=tracking))
    tracking.ended()
    assert ends == [({}, {})]


def test_a_servers_runs_are_told_one_after_the_other(plan: Plan, tmp_path: Path) -> None:
    """With the daemon's own calls: a run begins, plays, ends; the next has trackers of its own."""
    from server.queue import Queue

    made: list[Remembering] = []
    warned: list[tuple[str, str]] = []
    queue = Queue.read(tmp_path, tmp_path / "queue.json")
    entries = [queue.add(plan) for _ in range(2)]

    def make() -> Tracker:
        made.append(Remembering(RunFolder(queue.folder(entries[len(made)]))))
        if len(made) == 2:
            raise OSError
        return made[-1]

    class Others(Watcher):
        def warns(self, code: str, text: str, **fields: float | str) -> None:
            warned.append((code, text))

    watcher = TrackingWatcher({"memory": make}, Others())
    for entry in entries:
        folder = RunFolder(tmp_path / entry.run)
        watcher.begins(entry, plan, folder)
        start_run(plan, folder.path, Settings(engine="inline", observer=watcher))
        watcher.ends(entry, folder)
        watcher.ends(entry, folder)  # a run that had ended before is told of again
    assert made[0].facts is not None
    assert made[0].facts.run == entries[0].run
    assert made[0].facts.setting == "deployment"
    assert [number for number, _ in made[0].rounds] == [1, 2, 3]
    assert warned == [("tracker", "tracker memory: OSError; the run goes on without it")]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("tensorbord=x", "did you mean tensorboard?"),
        ("mlflow", "give tensorboard=DIR"),
        ("wandb=x", "give wandb=offline:DIR, or wandb=online:PROJECT"),
        ("wandb=online:", "give wandb=offline:DIR"),
    ],
)
def test_what_is_no_tracker_is_told_in_one_line(given: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_trackers([given])
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_the_same_tracker_twice_and_one_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is there twice"):
        parse_trackers(["tensorboard=a", "tensorboard=b"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'veil-fl\[tracking\]'"):
        parse_trackers(["wandb=offline:x"])


def test_a_wrong_tracker_is_found_before_a_folder_is_made(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tracker 'x'"):
        start_run(plan, tmp_path / "run", Settings(engine="inline", track=("x=y",)))
    assert not (tmp_path / "run").exists()
