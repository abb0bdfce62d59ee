"""The server's log: one JSON object a line, for programs that watch it.

What a line may say is fixed here, field by field and in form: a log is copied, shipped and searched by people who may
not see data. So there is no free text in it, no path, no body of a message and no text of an exception; what a
stranger sent is never written, not even as a name, unless it has the form of one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final, Literal

from security.frames import Goodbye, Taken
from server.gathering import answer_text
from server.observer import RoundRecord
from server.queue import Entry
from server.run_folder import RunFolder
from server.watchers import Watcher
from shared_models.plan import Plan

Level = Literal["debug", "info", "warning", "error"]
Value = str | int | float | bool | None

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")  # sites, plans
_WORD: Final = re.compile(r"[a-z0-9][a-z0-9 :_-]{0,63}")  # fixed codes
_HEX: Final = re.compile(r"[0-9a-f]{1,64}")
_VERSION: Final = re.compile(r"[A-Za-z0-9_.+-]{0,64}")
_PLACE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.:<> -]{0,127}")  # kind of an error of our own, and the line of code
_FOLDERS: Final = re.compile(r"[^ ]*/")
_NUMBER: Final = None  # any finite one

FIELDS: Final[Mapping[str, re.Pattern[str] | None]] = {
    "site": _NAME,
    "plan": _NAME,
    "run": _HEX,
    "digest": _HEX,
    "task": _HEX,
    "reason": _WORD,
    "state": _WORD,
    "answer": _WORD,
    "warning": _WORD,
    "where": _PLACE,
    "software": _VERSION,
    "round": _NUMBER,
    "rounds": _NUMBER,
    "seconds": _NUMBER,
    "sites": _NUMBER,
    "cohort": _NUMBER,
    "updates": _NUMBER,
    "faults": _NUMBER,
    "epsilon": _NUMBER,
    "metric": _NUMBER,
    "bytes": _NUMBER,
    "days": _NUMBER,
    "port": _NUMBER,
    "code": _NUMBER,
    "pid": _NUMBER,
    "unwritten": _NUMBER,
}
"""The fields of a line beside `time`, `level` and `event`: the form of their texts, None for numbers."""

_LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LARGEST: Final = 10 << 20  # bytes a file
_KEPT: Final = 5  # old files
_BURST: Final = 100  # lines that one site may cause at once; later one a second


class EventLog:
    """A log file that is rotated by size. Any thread may write; a disk that is full stops no run.

    Args:
        path: of the newest file; older ones are `path.1`, `path.2`, ...
        largest: bytes of a file.
        kept: old files that are kept.
    """

    def __init__(self, path: Path | None, *, largest: int = _LARGEST, kept: int = _KEPT) -> None:
        self._handler = None if path is None else _Lines(path, maxBytes=largest, backupCount=kept)

    def __call__(self, event: str, *, level: Level = "info", **fields: Value) -> None:
        """Write a line. A value that has not its field's form is written as "?".

        Raises:
            ValueError: the event or a field is not one that a line may have.
        """
        line = line_of(event, level=level, fields=fields)
        if self._handler is not None:
            self._handler.handle(logging.LogRecord("veil.server", _LEVELS[level], "", 0, line, (), None))

    def close(self) -> None:
        """Close the file."""
        if self._handler is not None:
            self._handler.close()


def line_of(event: str, *, level: Level, fields: Mapping[str, Value]) -> str:
    """A line of the log, without its end.

    Raises:
        ValueError: the event or a field is not one that a line may have.
    """
    strange = sorted(set(fields) - set(FIELDS))
    if strange or not _WORD.fullmatch(event):
        raise ValueError(f"not for a log: {', '.join(strange) or 'the event'}")
    told = {name: _told(FIELDS[name], value) for name, value in fields.items() if value is not None}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "event": event, **told})


def _told(form: re.Pattern[str] | None, value: Value) -> Value:
    if form is None:
        return value if isinstance(value, (int, float)) and math.isfinite(value) else "?"
    return value if isinstance(value, str) and form.fullmatch(value) else "?"


class LogWatcher(Watcher):
    """Writes down what a server does.

    Of a run with secret cohorts no task and no reply is written: they tell who takes part in a round.

    What a site can make happen as often as it likes is written once a second for each site, after the first
    hundred; else one could write the log so full that nothing of before is left in it.

    Args:
        log: where.
        clock: monotonic, seconds.
    """

    def __init__(self, log: EventLog, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._run: str | None = None
        self._metric = ""
        self._secret = False
        self._lock = threading.Lock()
        self._paces: dict[str | None, _Pace] = {}

    def _of_site(self, event: str, site: str | None, *, level: Level = "info", **fields: Value) -> None:
        with self._lock:
            pace = self._paces.setdefault(site, _Pace())
            left_out = pace.take(self._clock())
        if left_out is not None:
            self._log(event, level=level, site=site, **fields, **({"unwritten": left_out} if left_out else {}))

    def serving(self, port: int) -> None:
        self._log("serving", port=port, pid=os.getpid())

    def queued(self, entry: Entry) -> None:
        self._log("queued", run=entry.run, plan=entry.name, digest=entry.digest)

    def waiting(self, entry: Entry, text: str) -> None:
        self._log("waiting for sites", run=entry.run)

    def begins(self, entry: Entry, plan: Plan, folder: RunFolder) -> None:
        self._run, self._metric, self._secret = entry.run, plan.evaluation.metric, plan.has_secret_cohorts
        self._log("run begins", run=entry.run, plan=entry.name, digest=entry.digest, rounds=plan.federation.rounds)

    def started(self, plan: Plan, clients: int, done: int) -> None:
        self._log("members", run=self._run, sites=clients, round=done)

    def round_done(self, record: RoundRecord) -> None:
        for fault in record.faults:
            self._log(
                "missing from round",
                level="warning",
                run=self._run,
                round=record.round,
                site=fault["client"],
                reason=fault["reason"],
            )
        self._log(
            "round",
            run=self._run,
            round=record.round,
            seconds=record.seconds,
            cohort=record.cohort,
            updates=record.updates,
            epsilon=record.epsilon_max,
            metric=(record.evaluation or {}).get(self._metric),
            bytes=None if record.bytes_up is None or record.bytes_down is None else record.bytes_up + record.bytes_down,
        )

    def ends(self, entry: Entry, folder: RunFolder) -> None:
        level: Level = "error" if entry.state == "failed" else "info"
        self._log("run ends", level=level, run=entry.run, state=entry.state, code=entry.exit_code)
        self._run = None

    def warns(self, code: str, text: str, **fields: float | str) -> None:
        self._log("warning", level="warning", warning=code, **fields)

    def connected(self, site: str, software: str) -> None:
        self._of_site("connected", site, software=software)

    def disconnected(self, site: str, why: Goodbye | None, seconds: float) -> None:
        self._of_site("disconnected", site, reason=None if why is None else why.reason, seconds=round(seconds, 3))

    def refused(self, site: str | None, why: Goodbye) -> None:
        self._of_site("refused", site, level="warning", reason=why.reason)

    def answered(self, site: str, code: int) -> None:
        self._of_site("answered", site, run=self._run, answer=answer_text(code))

    def task_sent(self, site: str, task: str, size: int) -> None:
        if not self._secret:
            self._log("task sent", level="debug", run=self._run, site=site, task=task, bytes=size)

    def reply_stored(self, site: str, task: str, size: int) -> None:
        if not self._secret:
            self._log("reply stored", level="debug", run=self._run, site=site, task=task, bytes=size)

    def reply_refused(self, site: str, task: str, taken: Taken) -> None:
        if not self._secret:
            self._of_site("reply refused", site, level="warning", task=task, reason=taken.name.lower())

    def failed(self, site: str | None, where: str) -> None:
        self._of_site("stream failed", site, level="error", where=_FOLDERS.sub("", where))


class _Pace:
    """How many lines one site may cause."""

    def __init__(self) -> None:
        self._left = float(_BURST)
        self._since: float | None = None
        self._unwritten = 0

    def take(self, now: float) -> int | None:
        """How many lines were left out before this one; None if it is left out as well."""
        self._left = min(float(_BURST), self._left + (0.0 if self._since is None else max(0.0, now - self._since)))
        self._since = now
        if self._left < 1:
            self._unwritten += 1
            return None
        self._left -= 1
        found, self._unwritten = self._unwritten, 0
        return found


class _Lines(RotatingFileHandler):
    """Files that only their owner may read."""

    def __init__(self, path: Path, *, maxBytes: int, backupCount: int) -> None:
        super().__init__(path, maxBytes=maxBytes, backupCount=backupCount, encoding="utf-8", delay=True)

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return os.fdopen(descriptor, "a", encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """The library would print the line and a trace."""
        with suppress(OSError):
            self.close()
        self.stream = None  # opened again by the next line
