"""Peak memory of a process and all that it starts, watched from outside.

A process' share of memory is its proportional set size (PSS): pages that several processes have in common count once in
all. Off Linux, where there is none, resident memory stands in, and shared pages count for each.
"""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

_EVERY: Final = 0.05  # seconds between two looks
_PATIENCE: Final = 5.0  # seconds for a process to end
_MOST: Final = 0.05  # part of the time that looking may take: it walks page tables, on a processor others compute on


class TreeMemory:
    """Watches a process, its children, theirs and so on, in a thread; when it is left, all that still runs is ended.

    A process that was once seen counts for as long as it lives, even if its parent ends first.

    Attributes:
        peak: most bytes seen at once.
    """

    def __init__(self, pid: int) -> None:
        self.peak = 0.0
        self._root = psutil.Process(pid)
        self._seen: dict[tuple[int, float], psutil.Process] = {}
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()
        self._end()

    def look(self) -> None:
        """Add up once."""
        with self._lock:
            with contextlib.suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    self._seen.setdefault((process.pid, process.create_time()), process)
            total = 0.0
            for key, process in list(self._seen.items()):
                try:
                    total += _share(process)
                except psutil.Error:  # it has ended
                    self._seen.pop(key, None)
            self.peak = max(self.peak, total)

    def _end(self) -> None:
        """What is left would disturb who comes next."""
        for stop in (psutil.Process.terminate, psutil.Process.kill):
            left = [process for process in self._seen.values() if process.is_running()]
            for process in left:
                with contextlib.suppress(psutil.Error):
                    stop(process)
            if not psutil.wait_procs(left, timeout=_PATIENCE)[1]:
                return

    def _watch(self) -> None:
        while True:
            begun = time.monotonic()
            self.look()
            taken = time.monotonic() - begun
            if self._left.wait(max(_EVERY, taken / _MOST)):
                return


def own_peak() -> float:
    """Most bytes that this process had at once, what it shares with others included.

    What it had before it became this program, as a copy of the process that started it, doesn't count (on Linux).
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _share(process: psutil.Process) -> float:
    if not psutil.LINUX:
        return float(process.memory_info().rss)
    return float(process.memory_full_info().pss)
