"""When a site may begin to work: the owner's hours, no battery, no metered network, and a program of the owner's own.

Nobody needs to ask all the time: `next_change` says for how long the answer holds, or how soon it is worth asking
again where only asking can tell.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import psutil

from client.site_settings import ScheduleSettings, split_window

_ASK_AGAIN: Final = 60.0  # seconds: of what changes without a word
_AT_MOST: Final = 3600.0  # a machine that slept, or whose clock was set, is not late by more
_HOOK_SECONDS: Final = 30.0
_NMCLI_SECONDS: Final = 5.0

Run = Callable[[Sequence[str], float], "int | str"]


class Conditions:
    """What the owner's `[schedule]` says now.

    Args:
        schedule: the settings.
        clock: what the clock on the wall shows: local time, without a zone.
        battery: whether the machine runs on battery; None if it has none, or doesn't say.
        metered: whether the network is metered; None if the machine doesn't say.
        run: runs a program without a shell, with a limit in seconds: its exit code, or why there is none.
    """

    def __init__(
        self,
        schedule: ScheduleSettings,
        *,
        clock: Callable[[], datetime] | None = None,
        battery: Callable[[], bool | None] | None = None,
        metered: Callable[[], bool | None] | None = None,
        run: Run | None = None,
    ) -> None:
        self._schedule = schedule
        self._windows = [split_window(window) for window in schedule.windows]
        self._clock = clock or _now
        self._battery = battery or on_battery
        self._metered = metered or on_metered_network
        self._run = run or run_program

    def may_work(self) -> str | None:
        """Why work may not begin now, in half a line; None if it may. What costs least is asked first."""
        now, schedule = self._clock(), self._schedule
        if self._windows and not any(_inside(window, now) for window in self._windows):
            return f"outside of the hours {', '.join(schedule.windows)}"
        if not schedule.on_battery and self._battery():
            return "the machine runs on battery"
        if not schedule.metered and self._metered():
            return "the network is metered"
        if schedule.hook:
            code = self._run([schedule.hook], _HOOK_SECONDS)
            if code != 0:
                why = f"said no (exit {code})" if isinstance(code, int) else code
                return f"the site's program {Path(schedule.hook).name} {why}"
        return None

    def next_change(self) -> float:
        """Seconds until it is worth asking again: until the hours begin or end, or a minute where only asking tells."""
        now = self._clock()
        waits = [_AT_MOST, *(_until(edge, now) for window in self._windows for edge in window)]
        inside = not self._windows or any(_inside(window, now) for window in self._windows)
        schedule = self._schedule
        if inside and (schedule.hook or not (schedule.on_battery and schedule.metered)):
            waits.append(_ASK_AGAIN)
        return min(waits)


def on_battery() -> bool | None:
    """Whether the machine runs on battery; None if it has none, or doesn't say."""
    if not hasattr(psutil, "sensors_battery"):
        return None
    try:
        found = psutil.sensors_battery()
    except (OSError, RuntimeError, ValueError):  # /sys as odd machines and containers show it
        return None
    return None if found is None or found.power_plugged is None else not found.power_plugged


def on_metered_network() -> bool | None:
    """Whether NetworkManager takes the network for metered; None on a machine that doesn't say."""
    nmcli = shutil.which("nmcli")
    if nmcli is None:
        return None
    plain = {**os.environ, "LC_ALL": "C"}  # or it would say yes in the owner's own language
    arguments = [nmcli, "--terse", "--fields", "GENERAL.METERED", "device", "show"]
    try:
        found = subprocess.run(  # noqa: S603
            arguments, capture_output=True, text=True, timeout=_NMCLI_SECONDS, check=False, env=plain
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    if found.returncode != 0:
        return None
    # One line a device: yes, no, either of them "(guessed)", or unknown, as of one that isn't connected.
    return any(line.startswith("GENERAL.METERED:yes") for line in found.stdout.splitlines())


def run_program(arguments: Sequence[str], seconds: float) -> int | str:
    """Run a program of the owner's without a shell; its exit code, or why there is none, in half a line."""
    try:
        return subprocess.run(  # noqa: S603 - the owner names it
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return f"gave no answer within {seconds:g} s"
    except (OSError, ValueError) as error:
        return f"can't be run ({getattr(error, 'strerror', None) or 'its name is none'})"


def _inside(window: tuple[int, int], now: datetime) -> bool:
    begin, end = window
    minute = 60 * now.hour + now.minute
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _until(minute: int, now: datetime) -> float:
    """Seconds until the clock on the wall next shows so many minutes after midnight."""
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    for day in (0, 1):
        # Read off the wall, then compared as moments: a night may have an hour more or less.
        left = (midnight + timedelta(days=day, minutes=minute)).timestamp() - now.timestamp()
        if left > 0:
            return left
    return _ASK_AGAIN


def _now() -> datetime:
    return datetime.now().astimezone().replace(tzinfo=None)
