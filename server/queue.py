"""The plans that a server plays, one after another: `queue.json` in its home, beside a copy of each plan.

The file says at any moment what a server that was killed has to go on with: which run, in which folder, with whom.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, get_args

from security.errors import UsageError
from server.run_folder import write_atomically
from shared_models.plan import Plan
from shared_models.plan_file import read_plan, write_plan

State = Literal["waiting", "running", "done", "stopped", "failed"]
"""Not begun; begun; ended by itself; ended by the operator; could not go on. `running` of a dead server: cut off."""

_STATES: Final = get_args(State)
_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One plan in the queue.

    Attributes:
        run: what the run is called on the link, hex; by it a server that comes back asks for the same things.
        name: the plan's.
        digest: the plan's; its copy in the home must have it still.
        plan: file of that copy, from the home.
        folder: the run's folder, from the home.
        added: when, ISO 8601.
        state: how far it is.
        members: the sites that take part, fixed before the first message; none before that.
        identities: of each member, the public key that signs its statements, fixed with them.
        reason: why it stopped or failed, in one line.
        exit_code: of the run, once it has ended: 0, 1, or 3 for want of budget.
    """

    run: str
    name: str
    digest: str
    plan: str
    folder: str
    added: str
    state: State = "waiting"
    members: tuple[str, ...] = ()
    identities: Mapping[str, str] = field(default_factory=dict)
    reason: str | None = None
    exit_code: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing is to be done for it any more."""
        return self.state == "done"


@dataclass
class Queue:
    """The entries, in the order they are played. Any thread may ask; each change is on disk before it is told.

    Attributes:
        home: folder that the entries' paths start from.
        path: the file.
    """

    home: Path
    path: Path
    _entries: dict[str, Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(cls, home: Path, path: Path) -> Queue:
        """The queue in a home; an empty one where there is no file.

        Raises:
            UsageError: the file is damaged.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            entries = [_entry(item) for item in _list(raw)]
        except FileNotFoundError:
            entries = []
        except OSError as error:
            raise UsageError(f"{path}: can't be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path}: is no queue, or is damaged; restore it, or remove it to begin anew") from error
        return cls(home, path, {entry.run: entry for entry in entries})

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All of them, the first first."""
        with self._lock:
            return tuple(self._entries.values())

    @property
    def next(self) -> Entry | None:
        """The first that is not over."""
        return next((entry for entry in self.entries if not entry.is_over), None)

    def add(self, plan: Plan) -> Entry:
        """Copy a resolved plan into the home and put it at the end.

        Raises:
            RunError: it can't be written.
        """
        run = secrets.token_hex(8)
        now = datetime.now(UTC)
        entry = Entry(
            run=run,
            name=plan.name,
            digest=plan.digest(),
            plan=f"plans/{plan.name}-{run}.toml",
            folder=f"runs/{plan.name}-{now.astimezone():%Y%m%d-%H%M%S}-{run[:4]}",
            added=now.isoformat(timespec="seconds"),
        )
        self.plan_path(entry).parent.mkdir(exist_ok=True)
        write_atomically(self.plan_path(entry), write_plan(plan).encode())
        self._change(lambda entries: {**entries, run: entry})
        return entry

    def update(self, run: str, **changes: Any) -> Entry:
        """Change an entry.

        Raises:
            KeyError: there is none of that name.
            RunError: it can't be written; the old one stays.
        """
        self._change(lambda entries: {**entries, run: replace(entries[run], **changes)})
        return self.entry(run)

    def remove(self, run: str) -> None:
        """Take an entry out; its files stay.

        Raises:
            KeyError, RunError: as `update`.
        """
        self.entry(run)
        self._change(lambda entries: {name: entry for name, entry in entries.items() if name != run})

    def entry(self, run: str) -> Entry:
        """The entry of that name.

        Raises:
            KeyError: there is none.
        """
        with self._lock:
            return self._entries[run]

    def plan_path(self, entry: Entry) -> Path:
        """Where the copy of an entry's plan lies."""
        return self.home / entry.plan

    def folder(self, entry: Entry) -> Path:
        """An entry's run folder."""
        return self.home / entry.folder

    def plan(self, entry: Entry) -> Plan:
        """An entry's plan, as it was resolved when it was added.

        Raises:
            UsageError: it can't be read, or is another plan by now.
        """
        path = self.plan_path(entry)
        plan = read_plan(path)
        if plan.digest() != entry.digest:
            raise UsageError(f"{path}: is another plan than the one that was queued; restore it, or drop {entry.run}")
        return plan

    def _change(self, change: Callable[[dict[str, Entry]], dict[str, Entry]]) -> None:
        with self._lock:
            changed = change(self._entries)
            document = {"version": _VERSION, "entries": [asdict(entry) for entry in changed.values()]}
            write_atomically(self.path, (json.dumps(document, indent=2) + "\n").encode())
            self._entries = changed


def _list(raw: Any) -> list[Mapping[str, Any]]:
    if raw["version"] != _VERSION or not isinstance(raw["entries"], list):
        raise ValueError("another version")
    return list(raw["entries"])


def _entry(raw: Mapping[str, Any]) -> Entry:
    entry = Entry(**{**raw, "members": tuple(raw["members"])})
    own = (entry.run, entry.name, entry.digest, entry.plan, entry.folder, entry.added)
    texts = (*own, *entry.members, *entry.identities, *entry.identities.values())
    if entry.state not in _STATES or not all(isinstance(text, str) for text in texts):
        raise ValueError("not an entry")
    return entry
