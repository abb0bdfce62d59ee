"""Plays the plans of a queue, one after another, with the sites that come over the link.

Everything that must outlast the process is on disk before anybody hears of it: the queue says which run is played and
with whom, the run's folder holds its checkpoints, the mailbox what was asked and answered. A daemon that is killed and
begun again asks for the same things under the same names, and uses the answers that came meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

from flwr.app import Context, RecordDict

from security.errors import RunError, UsageError, VeilError
from server.app import ServerJob, server_app
from server.checkpoint import Checkpoint, load_checkpoint
from server.deployable import deployable, offered
from server.evaluation import TestData
from server.gathering import Answering, Gathering, StoppedError
from server.link_grid import GridStopped
from server.progress import Progress, RunGrid, WatchedGrid
from server.queue import Entry, Queue
from server.run_folder import RunFolder, reason_of, sync_folder, write_atomically
from server.settings import ServerSettings
from server.watchers import Watcher, Watchers
from shared_models.plan import Plan
from shared_models.plan_file import write_plan

LoadTest = Callable[[Plan], TestData | None]
"""The server's own test data for a plan; None if it has none."""


class Link(Answering, Protocol):
    """What the daemon needs of the link."""

    def offer(self, run: str, plan: str, digest: str) -> None:
        """Offer a plan to every site, now and on each new stream."""
        ...

    def withdraw(self) -> None:
        """Offer nothing any more."""
        ...


class Daemon:
    """Plays a queue.

    Args:
        queue: of the home.
        settings: the home's.
        link: serves already.
        grid: makes the grid of a run from what the run is called and its members.
        forget: drops what sites have said in a run.
        sites: the sites that are let in, now, each with the public key of its identity.
        load_test: the server's own test data.
        watcher: is told of everything.
    """

    def __init__(
        self,
        *,
        queue: Queue,
        settings: ServerSettings,
        link: Link,
        grid: Callable[[str, Sequence[str]], RunGrid],
        forget: Callable[[str], None],
        sites: Callable[[], Mapping[str, str]],
        load_test: LoadTest,
        watcher: Watcher,
    ) -> None:
        self.queue = queue
        self.progress = Progress()
        self._settings = settings
        self._link = link
        self._make_grid = grid
        self._forget = forget
        self._sites = sites
        self._load_test = load_test
        self._watcher = Watchers((self.progress, watcher))
        self._changed = threading.Condition()
        self._stopping = False
        self._grid: RunGrid | None = None

    # --- from any thread

    def submit(self, plan: Plan) -> Entry:
        """Check a plan and put it into the queue.

        Raises:
            UsageError: it can't be played here.
            RunError: the queue can't be written.
        """
        return self.submit_all([plan])[0]

    def submit_all(self, plans: Sequence[Plan]) -> list[Entry]:
        """The same with several, all or none."""
        sites = tuple(self._sites())
        resolved = [deployable(plan, sites) for plan in plans]
        for plan in resolved:
            self._test_data(plan)
        entries = [self.queue.add(plan) for plan in resolved]
        for entry in entries:
            self._watcher.queued(entry)
        with self._changed:
            self._changed.notify_all()
        return entries

    def stop(self) -> None:
        """End soon: what was played is in the last checkpoint, and `run` returns."""
        with self._changed:
            self._stopping = True
            grid = self._grid
            self._changed.notify_all()
        if grid is not None:
            grid.stop()

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping

    # --- the run thread

    def run(self, *, stay: bool = False) -> int:
        """Play the queue to its end; with `stay`, wait for more.

        Returns:
            The exit code: 0 done or stopped, 1 if a run failed, 3 if one ended for want of budget.

        Raises:
            RunError, UsageError: a run could not go on; its entry says so, and it can be gone on with.
        """
        worst = 0
        while not self._stopping:
            entry = self.queue.next
            if entry is None:
                if not stay:
                    break
                self._wait_for_more()
                continue
            entry = self._play(entry)
            if entry.state != "done":
                return entry.exit_code or 0
            worst = max(worst, entry.exit_code or 0)
        return worst

    def _wait_for_more(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self.queue.next is not None)

    def _play(self, entry: Entry) -> Entry:
        """Play a run to its end, and write down what became of it."""
        folder = RunFolder(self.queue.folder(entry))
        try:
            plan = self.queue.plan(entry)
            with _disk_errors(folder), folder.locked():
                checkpoint = load_checkpoint(folder.checkpoints, entry.digest)
                if not _is_finished(folder, plan, checkpoint):
                    self._lead(entry, plan, folder, checkpoint)
                summary = folder.read_summary()
        except (GridStopped, StoppedError):
            return self._end(entry, folder, state="stopped", reason="the server was stopped", exit_code=0)
        except VeilError as error:
            self._give_up(entry, folder, str(error))
            raise
        except Exception as error:  # a defect; it is told where it is caught
            self._give_up(entry, folder, type(error).__name__)
            raise
        return self._ended(entry, folder, summary)

    def _lead(self, entry: Entry, plan: Plan, folder: RunFolder, checkpoint: Checkpoint | None) -> None:
        test = self._test_data(plan)
        self._link.offer(entry.run, offered(plan), entry.digest)
        try:
            members = self._members(entry, plan)
            if entry.state == "failed":
                self._forget(entry.run)  # or what sites said then would fail it again; whom it cost is not charged anew
            # Before the first message: whoever goes on with this run must ask the same sites.
            known = self._sites()
            identities = entry.identities or {site: known[site] for site in members if site in known}
            begun = {"state": "running", "reason": None, "exit_code": None}
            self.queue.update(entry.run, members=members, identities=identities, **begun)
            _prepare(folder, plan)
            self._watcher.begins(entry, plan, folder)
            grid = self._open_grid(entry.run, members)
            job = ServerJob(
                plan=plan,
                folder=folder,
                test=test,
                observer=self._watcher,
                resume=checkpoint,
                simulated=False,
                identities=identities,
                federation=self._settings.federation,
            )
            try:
                server_app(job)(WatchedGrid(grid, self.progress), _context(grid))
            finally:
                with self._changed:
                    self._grid = None
        finally:
            self._link.withdraw()

    def _members(self, entry: Entry, plan: Plan) -> tuple[str, ...]:
        """The sites of a run: those it began with, or those that accept its plan now."""
        wait = self._settings.wait
        gathering = Gathering(
            link=self._link,
            sites=lambda: tuple(self._sites()),
            stopping=lambda: self._stopping,
            tell=lambda text: self._watcher.waiting(entry, text),
        )
        if entry.members:
            gathering.again(entry.members, seconds=min(wait.seconds, self._settings.deadline_seconds))
            return entry.members
        return gathering.enough(wait.sites, least=plan.federation.min_clients, seconds=wait.seconds)

    def _open_grid(self, run: str, members: Sequence[str]) -> RunGrid:
        grid = self._make_grid(run, members)
        with self._changed:
            if self._stopping:
                raise StoppedError("the server was stopped")
            self._grid = grid
        return grid

    def _test_data(self, plan: Plan) -> TestData | None:
        """The server's own test data, if the plan needs any.

        Raises:
            UsageError: it needs some, and there is none.
        """
        if plan.evaluation.where != "server":
            return None
        found = self._load_test(plan)
        if found is None or len(found.y) == 0:
            raise UsageError(
                f"{plan.name}: evaluation.where = 'server', but the server has no test data for data.name = "
                f"'{plan.data.name}'; name it in server.toml ([data] name, format, path), or give "
                "--set evaluation.where=none (or clients)"
            )
        return found

    def _ended(self, entry: Entry, folder: RunFolder, summary: Mapping[str, Any]) -> Entry:
        """What became of a run that has a summary."""
        stopped, reason = summary["stopped"], summary["reason"]
        if stopped == "failed":
            return self._end(entry, folder, state="failed", reason=reason, exit_code=1)
        entry = self._end(entry, folder, state="done", reason=reason, exit_code=3 if stopped == "budget" else 0)
        self._forget(entry.run)
        return entry

    def _end(self, entry: Entry, folder: RunFolder, **changes: Any) -> Entry:
        entry = self.queue.update(entry.run, **changes)
        self._watcher.ends(entry, folder)
        return entry

    def _give_up(self, entry: Entry, folder: RunFolder, reason: str) -> None:
        try:
            self._end(entry, folder, state="failed", reason=reason, exit_code=1)
        except RunError:  # the disk is full: on it the entry stays what it was, and is gone on with all the same
            self._watcher.ends(replace(entry, state="failed", reason=reason, exit_code=1), folder)


def _is_finished(folder: RunFolder, plan: Plan, checkpoint: Checkpoint | None) -> bool:
    """Whether a run had ended by itself before its end was written into the queue."""
    if checkpoint is None or not folder.summary.is_file():
        return False
    stopped = folder.read_summary().get("stopped")
    return stopped in ("target", "plateau") or checkpoint.state.round >= plan.federation.rounds


def _prepare(folder: RunFolder, plan: Plan) -> None:
    """Make what a run's folder holds from its beginning, as far as it isn't there."""
    folder.checkpoints.mkdir(exist_ok=True)
    folder.model.parent.mkdir(exist_ok=True)
    if not folder.plan.exists():
        write_atomically(folder.plan, write_plan(plan).encode())
    # Before a site hears of the run: without its folder a power failure would take the run's id, and all be asked anew.
    for path in (folder.path, folder.path.parent, folder.path.parent.parent):
        sync_folder(path)


@contextmanager
def _disk_errors(folder: RunFolder) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{folder.path}: the disk can't be used ({reason_of(error)}); mend that and go on") from error


def _context(grid: RunGrid) -> Context:
    return Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
