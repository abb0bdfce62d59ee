"""What a client tells its owner: a line on the terminal, a line in `client.log`, and `status.json`, which says how
things stand now.

None of them holds a text of a stranger's: events and reasons are Veil's own words, names are checked before.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, Final

from security.errors import UsageError
from security.private_files import replace_file

_LARGEST_LOG: Final = 2 << 20  # bytes of a file
_OLD_LOGS: Final = 4

Value = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """How things stand, as `status.json` says it.

    Attributes:
        process: number of the client's process.
        running: whether it runs. One that was killed could not say so: whether its lock is held tells.
        connected: whether the server has welcomed this site.
        since: when that began, ISO time.
        server: its address.
        run: the server's id of the run that is offered, in hexadecimal.
        plan: its plan's name.
        digest: its plan's digest.
        answer: what this site answered: "accepted", "pending", or why not.
        round: the newest that this site worked on; None before the first.
        rounds: of the plan.
        epsilon: spent on this run, as its newest reply says.
        epsilon_planned: of the plan.
        working: whether the app is at work now.
        waiting: why work waits, in half a line.
        unsent: replies that the server doesn't have yet.
        faults: how often each one happened since the process began.
    """

    process: int
    running: bool = True
    connected: bool = False
    since: str
    server: str
    run: str | None = None
    plan: str | None = None
    digest: str | None = None
    answer: str | None = None
    round: int | None = None
    rounds: int | None = None
    epsilon: float | None = None
    epsilon_planned: float | None = None
    working: bool = False
    waiting: str | None = None
    unsent: int = 0
    faults: Mapping[str, int] = field(default_factory=dict)


class Notes:
    """Where a client notes what happens. No full disk stops it.

    Args:
        status: path of `status.json`.
        log: path of `client.log`.
        server: its address.
        say: prints a line on the terminal.
        verbose: whether the lines that nobody needs are printed as well.
    """

    def __init__(
        self, *, status: Path, log: Path, server: str, say: Callable[[str], None], verbose: bool = False
    ) -> None:
        self._path = status
        self._say = say
        self._verbose = verbose
        self._log = _LogFile(log)
        self._faults: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self.status = Status(process=os.getpid(), since=_now(), server=server)
        logging.getLogger("veil").addHandler(self._log)
        logging.getLogger("veil").propagate = False
        logging.getLogger("veil.client").setLevel(logging.INFO)
        # Written by a thread, so that nobody waits for the disk; of several changes at once it writes the last.
        self._news, self._ended = threading.Event(), False
        self._writer = threading.Thread(target=self._write_news, name="veil-status", daemon=True)
        self._write()
        self._writer.start()

    def close(self) -> None:
        """The client has ended; all is written."""
        self.show(running=False, connected=False, working=False, waiting=None)
        self._ended = True
        self._news.set()
        self._writer.join()
        logging.getLogger("veil").removeHandler(self._log)
        logging.getLogger("veil").propagate = True
        self._log.close()

    def note(self, event: str, line: str | None = None, **facts: Value) -> None:
        """Write an event into the log and, if there is a line for it, on the terminal."""
        self._log.write("info", event, facts)
        if line is not None:
            self._say(line)

    def detail(self, event: str, line: str, **facts: Value) -> None:
        """An event whose line is printed with `--verbose` alone."""
        self.note(event, line if self._verbose else None, **facts)

    def once(self, topic: str, line: str, **facts: Value) -> None:
        """An event that may come again and again: its line is printed when it changes."""
        self.note(topic, None if self._last.get(topic) == line else line, **facts)
        self._last[topic] = line

    def over(self, topic: str) -> None:
        """What was noted by `once` is over: should it begin again, it is printed again."""
        self._last.pop(topic, None)

    def fault(self, reason: str) -> None:
        """Count a fault."""
        self._faults[reason] += 1
        self.show(faults=dict(self._faults))

    def show(self, **changes: Any) -> None:
        """Change what `status.json` says."""
        if "connected" in changes and changes["connected"] != self.status.connected:
            changes["since"] = _now()
        new = replace(self.status, **changes)
        if new != self.status:
            self.status = new
            self._news.set()

    def _write_news(self) -> None:
        while not self._ended or self._news.is_set():
            self._news.wait()
            self._news.clear()
            self._write()

    def _write(self) -> None:
        try:
            replace_file(self._path, (json.dumps(asdict(self.status), indent=1) + "\n").encode(), mode=0o600)
            self.over("status")
        except UsageError as error:
            self.once("status", str(error))


def read_status(path: Path) -> Status | None:
    """What a client said last; None if it never ran.

    Raises:
        UsageError: the file can't be read, or holds something else.
    """
    try:
        found = Status(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"{path}: can't be read ({error.strerror})") from error
    except (ValueError, TypeError):
        raise UsageError(f"{path}: is no status; remove it") from None
    return found


class _LogFile(RotatingFileHandler):
    """One JSON object a line, in files that only their owner may read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, maxBytes=_LARGEST_LOG, backupCount=_OLD_LOGS, encoding="utf-8", delay=True)
        self.setFormatter(_AsJson())

    def write(self, level: str, event: str, facts: Mapping[str, Value]) -> None:
        number = logging.getLevelNamesMapping()[level.upper()]
        record = logging.LogRecord("veil.client", number, "", 0, event, (), None)
        record.facts = dict(facts)
        self.handle(record)

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: the library would print the line and a trace."""
        if self.stream is not None:
            with suppress(OSError):
                self.stream.close()
            self.stream = None  # opened again by the next line


class _AsJson(logging.Formatter):
    """What Veil's own modules log, and never an exception, whose text may hold a record."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {name: value for name, value in getattr(record, "facts", {}).items() if value is not None}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "event": record.getMessage(), **facts}
        return json.dumps(line)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
