"""Trackers of a server that plays one plan after another: each run is one of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from server.tracking.facts import Tracker
from server.tracking.tracking import Tracking
from server.watchers import Watcher
from shared_models.plan import Plan


class TrackingWatcher(Watcher):
    """Tells trackers of the server's runs, each by its folder's name.

    Args:
        trackers: as of `Tracking`.
        others: are told of a tracker that fails.
    """

    def __init__(self, trackers: Mapping[str, Callable[[], Tracker]], others: Watcher) -> None:
        self._trackers, self._others = trackers, others
        self._run: Tracking | None = None

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        self._run = Tracking(
            self._trackers,
            folder=folder,
            setting="deployment",
            warn=lambda text: self._others.warns("tracker", text),
        )

    def started(self, plan: Plan, clients: int, done: int) -> None:
        if self._run is not None:
            self._run.started(plan, clients, done)

    def round_done(self, record: RoundRecord) -> None:
        if self._run is not None:
            self._run.round_done(record)

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.ended()
