"""Tells trackers of a run while it goes on. A tracker that fails or hangs never holds up a run: one warning, then none.

Each tracker has a thread and a queue of its own. When a round is told is news of its own where cohorts are secret, for
how long a round took tells of its size (rule 3) and libraries write down the time by themselves: there all rounds are
told when the run is over.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Final

from security.errors import VeilError
from server.observer import RoundRecord
from server.run_folder import RunFolder
from server.tracking.facts import Figures, RunFacts, Tracker, Words, of_plan, of_round, of_summary
from shared_models.plan import Plan

PATIENCE_SECONDS: Final = 30.0
"""How long the end of a run waits for a tracker."""

_MOST_WAITING: Final = 10_000  # rounds that a tracker which hangs may be behind


class Tracking:
    """An observer of one run.

    Args:
        trackers: what makes each, by name; called in the tracker's own thread, where its library is imported.
        folder: of the run.
        called: what the run is called; None for the folder's last name.
        setting: "simulation" or "deployment".
        warn: is told, in one line, of a tracker that fails; from any thread.
        patience: seconds that the end waits for all of them together.
    """

    def __init__(
        self,
        trackers: Mapping[str, Callable[[], Tracker]],
        *,
        folder: RunFolder,
        called: str | None = None,
        setting: str = "simulation",
        warn: Callable[[str], None],
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self._lines = [_Line(name, make, warn) for name, make in trackers.items()]
        self._folder, self._called, self._setting = folder, called, setting
        self._warn, self._patience = warn, patience
        self._secret = False
        self._begun = False

    def started(self, plan: Plan, clients: int, done: int) -> None:
        """The run begins, or goes on: what was played before is told again."""
        del clients
        facts = RunFacts(
            run=self._called or self._folder.path.name or plan.name,
            name=plan.name,
            plan_digest=plan.digest(),
            setting=self._setting,
            done=done,
        )
        settings = of_plan(plan)
        self._secret, self._begun = plan.has_secret_cohorts, True
        self._tell(lambda tracker: tracker.start(facts, settings))
        if not self._secret and done:
            self._tell_all_rounds()

    def note(self, text: str) -> None:
        """Not for trackers."""

    def round_done(self, record: RoundRecord) -> None:
        """A round is over."""
        if not self._secret:
            number, figures = record.round, of_round(asdict(record))
            self._tell(lambda tracker: tracker.round(number, figures))

    def ended(self) -> None:
        """The run is over, or was cut off; wait for the trackers for a while."""
        if not self._begun:
            return
        self._begun = False
        figures: Figures = {}
        words: Words = {}
        if self._folder.summary.is_file():
            if self._secret:
                self._tell_all_rounds()
            try:
                figures, words = of_summary(self._folder.read_summary())
            except VeilError as error:
                self._warn(f"trackers: {error}")
        self._tell(lambda tracker: tracker.end(figures, words))
        for line in self._lines:
            line.finish()
        deadline = time.monotonic() + self._patience
        for line in self._lines:
            line.wait(max(0.0, deadline - time.monotonic()), self._patience)

    def _tell(self, say: Callable[[Tracker], None]) -> None:
        for line in self._lines:
            line.put(say)

    def _tell_all_rounds(self) -> None:
        for one in self._folder.read_metrics():
            number, figures = int(one["round"]), of_round(one)
            self._tell(lambda tracker, number=number, figures=figures: tracker.round(number, figures))  # type: ignore[misc]


class _Line:
    """What is to be told to one tracker, and the thread that tells it."""

    def __init__(self, name: str, make: Callable[[], Tracker], warn: Callable[[str], None]) -> None:
        self._name, self._make, self._warn = name, make, warn
        self._waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_MOST_WAITING)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"veil-track-{name}", daemon=True)
        self._thread.start()

    def put(self, say: Callable[[Tracker], None]) -> None:
        if self._over.is_set():
            return
        try:
            self._waiting.put_nowait(say)
        except queue.Full:
            self._give_up("it takes nothing any more")

    def finish(self) -> None:
        """Nothing more will be told."""
        if not self._over.is_set():
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                self._give_up("it takes nothing any more")

    def wait(self, seconds: float, patience: float) -> None:
        """Wait until all is told, so long at most; `patience` is what a warning says."""
        if not self._over.is_set():
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._give_up(f"it has not answered within {patience:g} s")
        self._over.set()

    def _run(self) -> None:
        try:
            tracker = self._make()
            while not self._over.is_set():
                say = self._waiting.get()
                if say is None:
                    break
                say(tracker)
        except (Exception, SystemExit) as error:
            # The text of another library's error could hold an address with a password, or a path.
            self._give_up(str(error) if isinstance(error, VeilError) else type(error).__name__)

    def _give_up(self, why: str) -> None:
        if not self._over.is_set():
            self._over.set()
            self._warn(f"tracker {self._name}: {' '.join(why.split())}; the run goes on without it")
