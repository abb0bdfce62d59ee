"""What a person sees while a server plays its queue: each run as `veil simulate` shows it."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from security.frames import Goodbye
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from server.watchers import Watcher
from shared_models.plan import Plan
from veil.commands.console import Console


class ServerConsole(Watcher):
    """Shows the runs of a server as they are played."""

    def __init__(self, home: Path, *, federation: str, as_json: bool) -> None:
        self._home = home
        self._federation = federation
        self._json = as_json
        self._console = Console(as_json=as_json)
        self._live = ExitStack()
        self._refused: dict[str | None, set[Goodbye]] = {}

    def close(self) -> None:
        """Give the terminal back."""
        self._live.close()

    def serving(self, port: int) -> None:
        if not self._json:
            print(f"serving {self._federation} at port {port}", flush=True)

    def waiting(self, entry: Entry, text: str) -> None:
        self._console.note(f"{entry.name}: {text}")

    def warns(self, code: str, text: str, **fields: float | str) -> None:
        self._console.note(text)

    def refused(self, site: str | None, why: Goodbye) -> None:
        told = self._refused.setdefault(site, set())
        if why not in told:  # who calls again and again is named once for each reason
            told.add(why)
            who = "somebody without a certificate of Veil's" if site is None else f"site {site}"
            self._console.note(f"{who} was not let in ({why.reason})")

    def connected(self, site: str, software: str) -> None:
        self._refused.pop(site, None)

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        self._live.enter_context(self._console.watching(folder.path))

    def started(self, plan: Plan, clients: int, done: int) -> None:
        self._console.started(plan, clients, done)

    def note(self, text: str) -> None:
        self._console.note(text)

    def round_done(self, record: RoundRecord) -> None:
        self._console.round_done(record)

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        self._live.close()
        if entry.state == "stopped":
            print(f"stopped; go on with: veil server resume {self._home}", file=sys.stderr, flush=True)
        elif folder.summary.is_file():
            self._console.closing(folder)
            if entry.state == "failed":
                print(f"try again with: veil server resume {self._home}", file=sys.stderr, flush=True)
        sys.stdout.flush()
